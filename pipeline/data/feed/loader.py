"""Feeds training and evaluation with decoded batches.

What a batch holds is a pure function of (data, spec, step): the same for any world size, any
number of threads and any interruption. The only state is the optimizer step. Threads decode
straight into the arrays of the batch; the codec releases the interpreter while it works.
Memory is that of `STEPS_AHEAD` + 1 batches of the rank; nothing grows with the images.

Axis letters: B batch, H W pixels, C channels.
"""

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.data.feed.augment import Drawn, Draws, apply, centre_box
from pipeline.data.feed.course import Passes, Places
from pipeline.data.feed.mixing import Mix, draw_mix
from pipeline.data.feed.mixtures import AnyData, MixedSplit, course_through, splits_of
from pipeline.data.order import EpochOrder, Int64s
from pipeline.data.shards.shard_set import AnySplit, Row, epoch_order
from schemas.errors import IntegrityError
from schemas.training import AugmentSpec, BatchSpec

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
    weight_B: NDArray[np.float32] | None = None  # noqa: N815
    """How much each sample counts, 1 on average over the global batch; None: all alike."""
    mix: Mix | None = None
    """How neighbours are to be mixed, on the device; None: not at all."""

    def __len__(self) -> int:
        return len(self.label_B)

    def part(self, start: int, stop: int) -> "Batch":
        """Some consecutive samples, as views."""
        return Batch(
            self.pixels_BHWC[start:stop],
            self.label_B[start:stop],
            self.uid_B[start:stop],
            None if self.weight_B is None else self.weight_B[start:stop],
            None if self.mix is None else self.mix.part(start, stop),
        )


@dataclass
class TrainLoader:
    """One rank's share of the global batches, epoch after epoch.

    Raises:
        DataError: If there are too few images for one global batch.
    """

    data: AnyData
    _: KW_ONLY
    augment: AugmentSpec
    image_px: tuple[int, int]
    """Height and width of the model's input."""
    batch: BatchSpec
    seed: int
    rank: int
    world_size: int
    micro_batch: int
    """Samples in one micro-batch; divides the rank's share."""
    threads: int
    clock: Callable[[], float] = time.perf_counter
    """Counts seconds, for the metrics."""
    replaced: int = field(default=0, init=False)
    """Bad rows for which others stood in so far, on this rank."""

    def __post_init__(self) -> None:
        self._splits = splits_of(self.data)
        self._course = course_through(self.data, self.batch)
        self._samples = 0
        self._lock = threading.Lock()
        self._orders: dict[tuple[int, int], EpochOrder] = {}
        self._tally = _Tally(self.clock)
        self._open: weakref.WeakSet[Generator[tuple[Batch, ...]]] = weakref.WeakSet()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self._course.steps_per_epoch

    def batches(self, start_step: int) -> Iterator[tuple[Batch, ...]]:
        """The micro-batches of every optimizer step from `start_step` on, without end.

        Raises:
            IntegrityError: If more rows are bad than may be replaced.
        """
        steps = self._stream(start_step)
        self._open.add(steps)
        return steps

    def figures(self) -> dict[str, float]:
        """What the loader did on this rank since it was asked last, by the names of metrics."""
        figures = {"loader/replaced_count": float(self.replaced), **self._tally.read()}
        if isinstance(self._course, Passes) and self.batch.tail == "pad":
            figures["loader/repeated_per_epoch_count"] = float(self._course.repeated_per_epoch)
        return figures

    def close(self) -> None:
        """End every iterator and its threads."""
        for steps in list(self._open):
            steps.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stream(self, start_step: int) -> Generator[tuple[Batch, ...]]:
        with _Decoder(self.threads, self._tally) as decoder:
            for batch in decoder.run(self._plans(start_step)):
                yield tuple(
                    batch.part(start, start + self.micro_batch)
                    for start in range(0, len(batch), self.micro_batch)
                )

    def _plans(self, start_step: int) -> Iterator["_Plan"]:
        samples = self.batch.global_samples
        at_once = max(1, SAMPLES_AT_ONCE * self.world_size // samples)
        step = start_step
        while True:
            # Up to the end of an epoch: beyond it another order has to be made first.
            left = self.steps_per_epoch - step % self.steps_per_epoch
            yield from self._plans_of(range(step, step + min(at_once, left)))
            step += min(at_once, left)

    def _plans_of(self, steps: range) -> Iterator["_Plan"]:
        """Plans of some steps, which are located and drawn together."""
        places = self._course.places(steps, rank=self.rank, world_size=self.world_size)
        located = self._locate(places)
        draws = Draws(self.augment, places, seed=self.seed)
        share = len(places) // len(steps)

        def plan(step: int) -> _Plan:
            first = (step - steps.start) * share

            def fill(batch: Batch, index: int) -> None:
                source, where = located[first + index]

                def place(row: Row) -> None:
                    sizes = (row.height_px, row.width_px), self.image_px
                    _put(batch, index, row, draws.params(first + index, *sizes))
                    if isinstance(self.data, MixedSplit):
                        batch.label_B[index] = self.data.label_maps[source][row.label]

                self._fill(self._splits[source], where, place)

            weight = None if places.weight is None else places.weight[first : first + share]
            return _Plan(share, self.image_px, fill, weight, self._mix(step, share))

        return map(plan, steps)

    def _mix(self, step: int, share: int) -> Mix | None:
        pairs = np.arange(self.rank * share, (self.rank + 1) * share, 2, dtype=np.int64) // 2
        return draw_mix(self.augment, pairs, seed=self.seed, step=step, image_px=self.image_px)

    def _locate(self, places: Places) -> dict[int, tuple[int, "_Where"]]:
        """For each sample of the places: which set it is of, and where to read it."""
        located: dict[int, tuple[int, _Where]] = {}
        sets, epochs = places.source, places.epoch
        for source, epoch in sorted(set(zip(sets.tolist(), epochs.tolist(), strict=True))):
            order = self._order(source, epoch)
            mine = np.flatnonzero((sets == source) & (epochs == epoch))
            positions = places.position[mine] % order.num_rows
            columns = (mine, *order.locate(positions), positions)
            self._splits[source].prefetch(order.ahead(int(positions.max())).tolist())
            for index, *where in zip(*(column.tolist() for column in columns), strict=True):
                located[index] = source, _Where(order, *where)
        return located

    def _order(self, source: int, epoch: int) -> EpochOrder:
        order = self._orders.get((source, epoch))
        if order is None:
            order = epoch_order(self._splits[source], seed=self.seed, epoch=epoch)
            self._orders[source, epoch] = order
            self._orders.pop((source, epoch - 2), None)
        return order

    def _fill(self, split: AnySplit, where: "_Where", place: Callable[[Row], None]) -> None:
        """Read the sample, or the first stand-in for it that can be read, and put it in place."""
        with self._lock:
            self._samples += 1
        others = where.order.substitutes(where.position)
        for shard, row in itertools.chain([(where.shard, where.row)], others):
            try:
                _fetch(split, shard, row, place)
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
                _put(batch, index, row, Drawn(box))

            try:
                _fetch(split, int(shards[index]), int(rows[index]), place)
            except _BadRowError as error:
                raise IntegrityError(str(error)) from error

        return _Plan(len(rows), image_px, fill)

    with _Decoder(threads, _Tally(time.perf_counter)) as decoder:
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
    weight: NDArray[np.float32] | None = None
    mix: Mix | None = None


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a sample lies, and what says who stands in for it."""

    order: EpochOrder
    shard: int
    row: int
    position: int


class _Tally:
    """What decoding cost since it was read last; any thread may add."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._images, self._ready, self._batches = 0.0, 0, 0, 0

    def decoded(self, images: int, seconds: float) -> None:
        with self._lock:
            self._images += images
            self._seconds += seconds

    def delivered(self, ready: int) -> None:
        with self._lock:
            self._batches += 1
            self._ready += ready

    def read(self) -> dict[str, float]:
        with self._lock:
            figures = {
                "loader/decode_seconds": self._seconds / max(1, self._images),
                "loader/ready_steps": self._ready / max(1, self._batches),
            }
            self._reset()
        return figures


class _Decoder:
    """Threads that fill batches a few steps ahead; none is left after the `with` block."""

    def __init__(self, threads: int, tally: _Tally) -> None:
        self._threads = threads
        self._tally = tally
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
                yield self._finish(ahead)
        while ahead:
            yield self._finish(ahead)

    def _begin(self, plan: _Plan) -> tuple[Batch, list[Future[None]]]:
        batch = Batch(
            np.empty((plan.samples, *plan.image_px, 3), np.uint8),
            np.empty(plan.samples, np.int64),
            np.empty((plan.samples, 16), np.uint8),
            plan.weight,
            plan.mix,
        )
        shares = [range(first, plan.samples, self._threads) for first in range(self._threads)]
        return batch, [self._pool.submit(self._fill, plan, batch, share) for share in shares]

    def _fill(self, plan: _Plan, batch: Batch, share: range) -> None:
        began = self._tally.clock()
        for index in share:
            if self._stopped.is_set():
                return
            plan.fill(batch, index)
        self._tally.decoded(len(share), self._tally.clock() - began)

    def _finish(self, ahead: deque[tuple[Batch, list[Future[None]]]]) -> Batch:
        """The next batch; what is ready when it is asked for is the depth of the queue."""
        self._tally.delivered(sum(all(map(Future.done, futures)) for _, futures in ahead))
        batch, futures = ahead.popleft()
        for future in futures:
            future.result()
        return batch


def _put(batch: Batch, index: int, row: Row, drawn: Drawn) -> None:
    apply(row.image, drawn, batch.pixels_BHWC[index])
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
