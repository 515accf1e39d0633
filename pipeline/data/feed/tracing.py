"""Which images a training step took, and which steps took an image: the pure order, asked.

Nothing of a run is read but its data: the answers follow from spec, manifest and seed. A row that
was found damaged while training read it is answered with all the same; its stand-in is not told.

Costs. A step costs one epoch's order and the small columns of its rows; an image costs one scan of
the uids (16 bytes for each stored row) and the order of every epoch of the run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.feed.course import Course
from pipeline.data.feed.mixtures import AnyData, course_through, splits_of
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import AnySplit, Split, epoch_order
from schemas.samples import BatchSpec


@dataclass(frozen=True)
class Taken:
    """One sample of a step."""

    source: int
    """Index of the shard set among those that are trained on."""
    epoch: int
    position: int
    """In that epoch's order."""
    shard: int
    row: int
    """In the shard."""


@dataclass(frozen=True)
class Standing:
    """An image in one of the shard sets."""

    source: int
    shard: int
    row: int
    removed: bool
    """Taken out by a filter or by name: no step takes it."""


class Trace:
    """The course of a training through its data."""

    def __init__(self, data: AnyData, batch: BatchSpec, *, seed: int) -> None:
        """Fix what decides the course; raises DataError if there are too few images."""
        self._splits: tuple[AnySplit, ...] = splits_of(data)
        self._course: Course = course_through(data, batch)
        self._samples = batch.global_samples
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self._course.steps_per_epoch

    def step(self, step: int) -> list[Taken]:
        """The samples of an optimizer step, in the order of the global batch."""
        places = self._course.places(range(step, step + 1), rank=0, world_size=1)
        columns = (places.source.tolist(), places.epoch.tolist(), places.position.tolist())
        orders = {key: self._order(*key) for key in set(zip(*columns[:2], strict=True))}
        taken = []
        for source, epoch, given in zip(*columns, strict=True):
            order = orders[source, epoch]
            position = given % order.num_rows
            shard, row = order.locate(position)
            taken.append(Taken(source, epoch, position, int(shard[0]), int(row[0])))
        return taken

    def steps_of(self, image: Standing, total_steps: int) -> list[int]:
        """The steps of a run that take an image, rising."""
        if image.removed:
            return []
        rows = self._splits[image.source].num_rows
        by_epoch = -(-total_steps // self.steps_per_epoch)
        by_rows = total_steps * self._samples // rows + 1
        steps: set[int] = set()
        for epoch in range(max(by_epoch, by_rows)):
            (position,) = self._order(image.source, epoch).positions(
                np.array([image.shard]), np.array([image.row])
            )
            steps.update(self._course.steps_of(image.source, epoch=epoch, position=int(position)))
        return sorted(step for step in steps if step < total_steps)

    def _order(self, source: int, epoch: int) -> EpochOrder:
        return epoch_order(self._splits[source], seed=self._seed, epoch=epoch)


def standings(splits: Sequence[Split], uid: bytes) -> Iterator[Standing]:
    """Where an image stands, in each of the splits that has it."""
    for source, split in enumerate(splits):
        found = split.find(uid)
        if found is not None:
            shard, row = found
            yield Standing(source, shard, row, row not in split.live_rows(shard))
