"""Feeds training and evaluation with decoded batches.

What a batch holds is a pure function of (split, spec, step): the same for any world size, any
number of threads and any interruption. The only state is the optimizer step. Threads decode
straight into the arrays of the batch; the codec releases the interpreter while it works.

Axis letters: B batch, H W pixels, C channels.
"""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import CropParams, Draws, apply, centre_box
from pipeline.data.order import EpochOrder, Int64s, rank_positions, steps_per_epoch
from pipeline.data.shards import AnySplit, Row
from schemas.errors import DataError, IntegrityError
from schemas.training import AugmentSpec

STEPS_AHEAD = 2
"""Steps that are decoded while the current one is used."""
SAMPLES_AT_ONCE = 512
"""Samples of a rank that are located and drawn together: small arrays cost as much as large."""
REPLACED_ALWAYS = 10
REPLACED_RATIO = 100e-6
"""A run may replace this many bad rows, or this share of the rows read, whichever is more."""


@dataclass(frozen=True)
class Batch:
    """Decoded images with their labels."""

    pixels_BHWC: NDArray[np.uint8]  # noqa: N815 - arrays carry their axes in their names
    label_B: Int64s  # noqa: N815
    uid_B: NDArray[np.uint8]  # noqa: N815
    """The uids, [B, 16]."""

    def __len__(self) -> int:
        return len(self.label_B)


@dataclass
class TrainLoader:
    """One rank's share of the global batches, epoch after epoch.

    Raises:
        DataError: If the split has fewer rows than one global batch.
    """

    split: AnySplit
    _: KW_ONLY
    augment: AugmentSpec
    image_px: tuple[int, int]
    """Height and width of the model's input."""
    global_samples: int
    seed: int
    rank: int
    world_size: int
    micro_batch: int
    """Samples in one micro-batch; divides the rank's share."""
    threads: int
    replaced: int = field(default=0, init=False)
    """Bad rows for which others stood in so far, on this rank."""

    def __post_init__(self) -> None:
        if self.split.num_rows < self.global_samples:
            raise DataError(
                f"the split {self.split.name!r} has {self.split.num_rows} images, fewer than one "
                f"global batch of {self.global_samples}; lower batch.global_samples or add images"
            )
        self._samples = 0
        self._lock = threading.Lock()
        self._orders: dict[int, EpochOrder] = {}
        self._open: weakref.WeakSet[Generator[tuple[Batch, ...]]] = weakref.WeakSet()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the split."""
        return steps_per_epoch(self.split.num_rows, self.global_samples)

    def batches(self, start_step: int) -> Iterator[tuple[Batch, ...]]:
        """The micro-batches of every optimizer step from `start_step` on, without end.

        Raises:
            IntegrityError: If more rows are bad than may be replaced.
        """
        steps = self._stream(start_step)
        self._open.add(steps)
        return steps

    def close(self) -> None:
        """End every iterator and its threads."""
        for steps in list(self._open):
            steps.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stream(self, start_step: int) -> Generator[tuple[Batch, ...]]:
        with _Decoder(self.threads) as decoder:
            for batch in decoder.run(self._plans(start_step)):
                yield tuple(
                    _slice(batch, start, start + self.micro_batch)
                    for start in range(0, len(batch), self.micro_batch)
                )

    def _plans(self, start_step: int) -> Iterator["_Plan"]:
        at_once = max(1, SAMPLES_AT_ONCE * self.world_size // self.global_samples)
        step = start_step
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            steps = range(first, min(first + at_once, self.steps_per_epoch))
            yield from self._plans_of(epoch, steps)
            step += len(steps)

    def _plans_of(self, epoch: int, steps: range) -> Iterator["_Plan"]:
        """Plans of some steps of an epoch."""
        share = self.global_samples // self.world_size
        positions = np.concatenate([self._positions(step) for step in steps])
        order = self._order(epoch)
        shards, rows = order.locate(positions)
        draws = Draws(self.augment, seed=self.seed, epoch=epoch, positions=positions)

        def plan(start: int) -> _Plan:
            def fill(batch: Batch, index: int) -> None:
                sample = start + index

                def place(row: Row) -> None:
                    sizes = (row.height_px, row.width_px), self.image_px
                    _put(batch, index, row, draws.params(sample, *sizes))

                here = (int(shards[sample]), int(rows[sample]))
                others = order.substitutes(int(positions[sample]))
                self._fill(itertools.chain([here], others), place)

            return _Plan(share, self.image_px, fill)

        return map(plan, range(0, len(positions), share))

    def _positions(self, step_in_epoch: int) -> Int64s:
        return rank_positions(
            step_in_epoch, self.global_samples, rank=self.rank, world_size=self.world_size
        )

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = EpochOrder(
                self.split.shard_rows,
                digest=self.split.order_digest,
                seed=self.seed,
                epoch=epoch,
                removed=self.split.removed,
            )
        return self._orders[epoch]

    def _fill(self, places: Iterator[tuple[int, int]], place: Callable[[Row], None]) -> None:
        """Read the first of `places` that can be read, and put it in its place."""
        with self._lock:
            self._samples += 1
        for shard, row in places:
            try:
                _fetch(self.split, shard, row, place)
            except _BadRowError as error:
                self._count_bad(error)
            else:
                return
        raise IntegrityError("no row of the window can be read")

    def _count_bad(self, error: "_BadRowError") -> None:
        with self._lock:
            self.replaced += 1
            allowed = max(REPLACED_ALWAYS, REPLACED_RATIO * self._samples)
            if self.replaced > allowed:
                raise IntegrityError(
                    f"{self.replaced} of {self._samples} rows read are damaged, the last one so: "
                    f"{error}",
                    hint="vitrail run SPEC --force STAGE, with the stage that made the data",
                ) from error


def eval_batches(
    split: AnySplit, *, image_px: tuple[int, int], batch_samples: int, threads: int
) -> Iterator[Batch]:
    """Every live row once, in storage order, resized and cut from the centre; the last is shorter.

    Raises:
        IntegrityError: If a row is not what was written: an evaluation replaces nothing.
    """

    def plan(start: int) -> _Plan:
        shards, rows = split.locate(np.arange(start, min(start + batch_samples, split.num_rows)))

        def fill(batch: Batch, index: int) -> None:
            def place(row: Row) -> None:
                box = centre_box((row.height_px, row.width_px), image_px)
                _put(batch, index, row, CropParams(box))

            try:
                _fetch(split, int(shards[index]), int(rows[index]), place)
            except _BadRowError as error:
                raise IntegrityError(str(error)) from error

        return _Plan(len(rows), image_px, fill)

    with _Decoder(threads) as decoder:
        yield from decoder.run(map(plan, range(0, split.num_rows, batch_samples)))


def probe_batch(split: AnySplit, n: int, image_px: tuple[int, int]) -> Batch:
    """The first `n` live rows (all, if there are fewer), prepared as for evaluation."""
    first = split.subset(np.arange(min(n, split.num_rows)))
    return next(iter(eval_batches(first, image_px=image_px, batch_samples=n, threads=1)))


class _BadRowError(Exception):
    """A row could not be read or decoded, twice."""


@dataclass(frozen=True)
class _Plan:
    """A batch to be: its size, and what fills one place of it."""

    samples: int
    image_px: tuple[int, int]
    fill: Callable[[Batch, int], None]


class _Decoder:
    """Threads that fill batches a few steps ahead; none is left after the `with` block."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._stopped = threading.Event()

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, plans: Iterator[_Plan]) -> Iterator[Batch]:
        """The filled batches, in the order of the plans."""
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()
        for plan in plans:
            ahead.append(self._begin(plan))
            if len(ahead) > STEPS_AHEAD:
                yield _finish(*ahead.popleft())
        while ahead:
            yield _finish(*ahead.popleft())

    def _begin(self, plan: _Plan) -> tuple[Batch, list[Future[None]]]:
        batch = Batch(
            np.empty((plan.samples, *plan.image_px, 3), np.uint8),
            np.empty(plan.samples, np.int64),
            np.empty((plan.samples, 16), np.uint8),
        )
        shares = [range(first, plan.samples, self._threads) for first in range(self._threads)]
        return batch, [self._pool.submit(self._fill, plan, batch, share) for share in shares]

    def _fill(self, plan: _Plan, batch: Batch, share: range) -> None:
        for index in share:
            if self._stopped.is_set():
                return
            plan.fill(batch, index)


def _finish(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(batch.pixels_BHWC[start:stop], batch.label_B[start:stop], batch.uid_B[start:stop])


def _put(batch: Batch, index: int, row: Row, crop: CropParams) -> None:
    height, width = batch.pixels_BHWC.shape[1:3]
    batch.pixels_BHWC[index] = apply(row.image, crop, (height, width))
    batch.label_B[index] = row.label
    batch.uid_B[index] = np.frombuffer(row.uid, np.uint8)


def _fetch(split: AnySplit, shard: int, row: int, place: Callable[[Row], None]) -> None:
    """Read and place a row; once more from the file itself if that fails."""
    try:
        place(split.read(shard, row))
    except Exception:  # a damaged row can make a decoder raise anything
        split.refetch(shard)
        try:
            place(split.read(shard, row))
        except Exception as error:
            raise _BadRowError(f"row {row} of shard {shard}: {error}") from error
