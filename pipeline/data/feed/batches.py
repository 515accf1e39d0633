"""Batches, and the threads that fill them a few steps ahead of whoever uses them.

Threads decode straight into the arrays of a batch; the codec releases the interpreter while it
works. Memory is that of `STEPS_AHEAD` + 1 batches, and `SAMPLES_AT_ONCE` stored images for each
thread; nothing grows with the images.

Axis letters: B batch, H W pixels, C channels.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.feed.augment import Drawn, apply
from pipeline.data.feed.course import Places
from pipeline.data.feed.mixing import Mix
from pipeline.data.order import Int64s
from pipeline.data.shards.shard_set import Row

STEPS_AHEAD = 2
"""Steps that are decoded while the current one is used."""
SAMPLES_AT_ONCE = 16
"""Stored images that a thread holds. First it reads them all, then it draws for them all, then it
decodes one after the other: decoding an image empties the processor's caches, and reading and
drawing took three times as long between two images."""


@dataclass(frozen=True)
class Batch:
    """Decoded images with their labels."""

    pixels_BHWC: NDArray[np.uint8]  # noqa: N815 - arrays carry their axes in their names
    label_B: Int64s  # noqa: N815
    uid_B: NDArray[np.uint8]  # noqa: N815
    """The uids, [B, 16]."""
    places: Places
    """Where in the run each sample stands: whatever else is drawn for it is drawn by that."""
    mix: Mix | None = None
    """How neighbours are to be mixed, on the device; None: not at all."""

    def __len__(self) -> int:
        return len(self.label_B)

    @property
    def weight_B(self) -> NDArray[np.float32] | None:  # noqa: N802
        """How much each sample counts, 1 on average over the global batch; None: all alike."""
        return self.places.weight

    def part(self, start: int, stop: int) -> "Batch":
        """Some consecutive samples, as views."""
        return Batch(
            self.pixels_BHWC[start:stop],
            self.label_B[start:stop],
            self.uid_B[start:stop],
            self.places.part(start, stop),
            None if self.mix is None else self.mix.part(start, stop),
        )

    def put(self, index: int, row: Row, drawn: Drawn) -> None:
        """Decode the image of a row into place `index`, with what was drawn for it."""
        apply(row.image, drawn, self.pixels_BHWC[index])

    def name(self, index: int, row: Row, label: int) -> None:
        """Say what the image at `index` is."""
        self.label_B[index] = label
        self.uid_B[index] = np.frombuffer(row.uid, np.uint8)


class Samples(Protocol):
    """What the places of one batch are filled with; called from threads, with places as indices."""

    def read(self, index: int) -> Row:
        """The stored row; raises whatever a damaged file makes a reader raise."""
        ...

    def draw(self, index: int, row: Row) -> Drawn:
        """How it is cut and altered."""
        ...

    def label(self, index: int, row: Row) -> int:
        """Its class in the batch."""
        ...

    def mend(self, batch: Batch, index: int) -> None:
        """Fill the place after all, where the row could not be read or decoded, or raise."""
        ...


@dataclass(frozen=True)
class BatchPlan:
    """A batch to be."""

    places: Places
    image_px: tuple[int, int]
    samples: Samples
    mix: Mix | None = None


class Tally:
    """What decoding cost since it was read last; any thread may add."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin at zero; `clock` counts seconds."""
        self.clock = clock
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._images, self._ready, self._batches = 0.0, 0, 0, 0

    def decoded(self, images: int, seconds: float) -> None:
        """Some images took so long."""
        with self._lock:
            self._images += images
            self._seconds += seconds

    def delivered(self, ready: int) -> None:
        """A batch was handed over, with so many steps ready."""
        with self._lock:
            self._batches += 1
            self._ready += ready

    def read(self) -> dict[str, float]:
        """Means since the last reading, by the names of metrics."""
        with self._lock:
            figures = {
                "loader/decode_seconds": self._seconds / max(1, self._images),
                "loader/ready_steps": self._ready / max(1, self._batches),
            }
            self._reset()
        return figures


class BatchFiller:
    """Threads that fill batches a few steps ahead; none is left after the `with` block."""

    def __init__(self, threads: int, tally: Tally) -> None:
        """Start no thread yet."""
        self._threads = threads
        self._tally = tally
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._stopped = threading.Event()

    def __enter__(self) -> "BatchFiller":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        """The filled batches, in the order of the plans."""
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()
        for plan in plans:
            ahead.append(self._begin(plan))
            if len(ahead) > STEPS_AHEAD:
                yield self._finish(ahead)
        while ahead:
            yield self._finish(ahead)

    def _begin(self, plan: BatchPlan) -> tuple[Batch, list[Future[None]]]:
        samples = len(plan.places)
        batch = Batch(
            np.empty((samples, *plan.image_px, 3), np.uint8),
            np.empty(samples, np.int64),
            np.empty((samples, 16), np.uint8),
            plan.places,
            plan.mix,
        )
        shares = [range(first, samples, self._threads) for first in range(self._threads)]
        return batch, [self._pool.submit(self._fill, plan, batch, share) for share in shares]

    def _fill(self, plan: BatchPlan, batch: Batch, share: range) -> None:
        began = self._tally.clock()
        for start in range(0, len(share), SAMPLES_AT_ONCE):
            if self._stopped.is_set():
                return
            _fill(batch, plan.samples, share[start : start + SAMPLES_AT_ONCE])
        self._tally.decoded(len(share), self._tally.clock() - began)

    def _finish(self, ahead: deque[tuple[Batch, list[Future[None]]]]) -> Batch:
        """The next batch; what is ready when it is asked for is the depth of the queue."""
        self._tally.delivered(sum(all(map(Future.done, futures)) for _, futures in ahead))
        batch, futures = ahead.popleft()
        for future in futures:
            future.result()
        return batch


def _fill(batch: Batch, samples: Samples, indices: Sequence[int]) -> None:
    """Fill some places; what cannot be read or decoded is mended afterwards."""
    found = _readable(samples, indices)
    drawn = [samples.draw(index, row) for index, row in found]
    for index, row in found:
        batch.name(index, row, samples.label(index, row))
    bad = sorted({*indices} - {index for index, _ in found})
    for (index, row), how in zip(found, drawn, strict=True):
        try:
            batch.put(index, row, how)
        except Exception:  # a damaged row can make a decoder raise anything
            bad.append(index)
    for index in bad:
        samples.mend(batch, index)


def _readable(samples: Samples, indices: Sequence[int]) -> list[tuple[int, Row]]:
    found = []
    for index in indices:
        try:
            found.append((index, samples.read(index)))
        except Exception:  # noqa: S112  # tried again, and told, where it is mended
            continue
    return found
