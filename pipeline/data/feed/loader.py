"""Feeds training and evaluation with decoded batches.

What a batch holds is a pure function of (data, spec, step): the same for any world size, any
number of threads and any interruption. The only state is the optimizer step.
"""

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from pipeline.data.feed.augment import Drawn, Draws, centre_box
from pipeline.data.feed.batches import Batch, BatchFiller, BatchPlan, Samples, Tally
from pipeline.data.feed.course import Passes, Places
from pipeline.data.feed.mixing import Mix, draw_mix
from pipeline.data.feed.mixtures import AnyData, MixedSplit, course_through, splits_of
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import AnySplit, Row, epoch_order
from schemas.errors import IntegrityError
from schemas.samples import AugmentSpec, BatchSpec

__all__ = ["Batch", "TrainLoader", "eval_batches", "numbered_batches", "probe_batch"]

SAMPLES_TOGETHER = 1024
"""Samples of a rank that are located and drawn together: small arrays cost as much as large."""
REPLACED_ALWAYS = 10
REPLACED_RATIO = 100e-6
"""A run may replace this many bad rows, or this share of the rows read, whichever is more."""


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
        self.splits = splits_of(self.data)
        self._course = course_through(self.data, self.batch)
        self._asked = 0
        self._lock = threading.Lock()
        self._orders: dict[tuple[int, int], EpochOrder] = {}
        self._tally = Tally(self.clock)
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
        with BatchFiller(self.threads, self._tally) as filler:
            for batch in filler.run(self._plans(start_step)):
                yield tuple(
                    batch.part(start, start + self.micro_batch)
                    for start in range(0, len(batch), self.micro_batch)
                )

    def _plans(self, start_step: int) -> Iterator[BatchPlan]:
        samples = self.batch.global_samples
        at_once = max(1, SAMPLES_TOGETHER * self.world_size // samples)
        step = start_step
        while True:
            # Up to the end of an epoch: beyond it another order has to be made first.
            left = self.steps_per_epoch - step % self.steps_per_epoch
            yield from self._plans_of(range(step, step + min(at_once, left)))
            step += min(at_once, left)

    def _plans_of(self, steps: range) -> Iterator[BatchPlan]:
        """Plans of some steps, which are located and drawn together."""
        places = self._course.places(steps, rank=self.rank, world_size=self.world_size)
        located = self._locate(places)
        draws = Draws(self.augment, places, seed=self.seed)
        share = len(places) // len(steps)

        def plan(step: int) -> BatchPlan:
            first = (step - steps.start) * share
            self._asked += share
            samples = _TrainSamples(self, located, draws, first)
            own = places.part(first, first + share)
            return BatchPlan(own, self.image_px, samples, self._mix(step, share))

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
            self.splits[source].prefetch(order.ahead(int(positions.max())).tolist())
            for index, *where in zip(*(column.tolist() for column in columns), strict=True):
                located[index] = source, _Where(order, *where)
        return located

    def _order(self, source: int, epoch: int) -> EpochOrder:
        order = self._orders.get((source, epoch))
        if order is None:
            order = epoch_order(self.splits[source], seed=self.seed, epoch=epoch)
            self._orders[source, epoch] = order
            self._orders.pop((source, epoch - 2), None)
        return order

    def count_bad(self, error: "_BadRowError") -> None:
        """Another row stands in for a bad one.

        Raises:
            IntegrityError: If that happens too often.
        """
        with self._lock:
            self.replaced += 1
            allowed = max(REPLACED_ALWAYS, REPLACED_RATIO * self._asked)
            if self.replaced > allowed:
                raise IntegrityError(
                    f"{self.replaced} of {self._asked} rows read are damaged, the last one so: "
                    f"{error}",
                    hint="vitrail run SPEC --force STAGE, with the stage that made the data",
                ) from error


def eval_batches(
    split: AnySplit,
    *,
    image_px: tuple[int, int],
    batch_samples: int,
    threads: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Every live row once, in storage order, resized and cut from the centre; the last is shorter.

    A sample's position is its place in that order. The ranks of a world take batches in turn: each
    row is read by one of them.

    Raises:
        IntegrityError: If a row is not what was written: an evaluation replaces nothing.
    """
    numbers = range(rank, -(-split.num_rows // batch_samples), world_size)
    return numbered_batches(
        split, numbers, image_px=image_px, batch_samples=batch_samples, threads=threads
    )


def numbered_batches(
    split: AnySplit,
    numbers: range,
    *,
    image_px: tuple[int, int],
    batch_samples: int,
    threads: int,
) -> Iterator[Batch]:
    """Some of the batches that `eval_batches` gives: k is the rows from k x `batch_samples` on.

    However a split is shared out, a batch is the same.

    Raises:
        IntegrityError: As `eval_batches`.
    """

    def plan(number: int) -> BatchPlan:
        start = number * batch_samples
        live = np.arange(start, min(start + batch_samples, split.num_rows))
        shards, rows = split.locate(live)
        samples = _EvalSamples(split, image_px, shards.tolist(), rows.tolist())
        zeros = np.zeros_like(live)
        return BatchPlan(Places(zeros, zeros, live), image_px, samples)

    with BatchFiller(threads, Tally(time.perf_counter)) as filler:
        yield from filler.run(map(plan, numbers))


def probe_batch(split: AnySplit, n: int, image_px: tuple[int, int]) -> Batch:
    """The first `n` live rows (all, if there are fewer), prepared as for evaluation."""
    first = split.subset(np.arange(min(n, split.num_rows)))
    return next(iter(eval_batches(first, image_px=image_px, batch_samples=n, threads=1)))


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a sample lies, and what says who stands in for it."""

    order: EpochOrder
    shard: int
    row: int
    position: int


@dataclass(frozen=True)
class _TrainSamples:
    """The samples of one step on one rank; see `Samples`."""

    loader: TrainLoader
    located: dict[int, tuple[int, _Where]]
    draws: Draws
    first: int
    """Where the step begins among what was located and drawn."""

    def read(self, index: int) -> Row:
        source, where = self.located[self.first + index]
        return self.loader.splits[source].read(where.shard, where.row)

    def draw(self, index: int, row: Row) -> Drawn:
        sizes = (row.height_px, row.width_px), self.loader.image_px
        return self.draws.params(self.first + index, *sizes)

    def label(self, index: int, row: Row) -> int:
        if not isinstance(self.loader.data, MixedSplit):
            return row.label
        source, _ = self.located[self.first + index]
        return int(self.loader.data.label_maps[source][row.label])

    def mend(self, batch: Batch, index: int) -> None:
        """Fetch the row once more; failing that, the first stand-in that can be read counts."""
        source, where = self.located[self.first + index]
        others = where.order.substitutes(where.position)
        for place in itertools.chain([(where.shard, where.row)], others):
            try:
                _put_refetched(self, batch, index, self.loader.splits[source], place)
            except _BadRowError as error:
                self.loader.count_bad(error)
            else:
                return
        raise IntegrityError("no row of the window can be read")


@dataclass(frozen=True)
class _EvalSamples:
    """Rows in storage order, cut from the centre; see `Samples`."""

    split: AnySplit
    image_px: tuple[int, int]
    shards: list[int]
    rows: list[int]

    def read(self, index: int) -> Row:
        return self.split.read(self.shards[index], self.rows[index])

    def draw(self, index: int, row: Row) -> Drawn:  # noqa: ARG002  # nothing is drawn
        return Drawn(centre_box((row.height_px, row.width_px), self.image_px))

    def label(self, index: int, row: Row) -> int:  # noqa: ARG002  # as it is stored
        return row.label

    def mend(self, batch: Batch, index: int) -> None:
        """Fetch the row once more; raises if that does not help."""
        place = self.shards[index], self.rows[index]
        try:
            _put_refetched(self, batch, index, self.split, place)
        except _BadRowError as error:
            raise IntegrityError(str(error)) from error


class _BadRowError(Exception):
    """A row could not be read or decoded, twice."""


def _put_refetched(
    samples: Samples, batch: Batch, index: int, split: AnySplit, place: tuple[int, int]
) -> None:
    """Read and decode a row; once more from the file itself if that fails."""

    def put() -> None:
        row = split.read(*place)
        batch.put(index, row, samples.draw(index, row))
        batch.name(index, row, samples.label(index, row))

    try:
        put()
    except Exception:  # a damaged row can make a decoder raise anything
        split.refetch(place[0])
        try:
            put()
        except Exception as error:
            raise _BadRowError(f"row {place[1]} of shard {place[0]}: {error}") from error
