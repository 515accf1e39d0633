"""Several splits that are trained on together: their classes united, their shares by weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.data.feed.course import Course, Mixture, Passes
from pipeline.data.order import Int64s
from pipeline.data.shards.shard_set import AnySplit
from schemas.errors import DataError
from schemas.samples import BatchSpec, MixturePhase


@dataclass(frozen=True)
class MixedSplit:
    """Splits of several shard sets, and how the samples of a batch are shared among them."""

    splits: tuple[AnySplit, ...]
    phases: tuple[MixturePhase, ...]
    """By step, the first from step 0; a weight for each split."""

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Every class of any split, once, by first appearance."""
        return united_classes(split.class_names for split in self.splits)

    @cached_property
    def label_maps(self) -> tuple[Int64s, ...]:
        """For each split: its labels -> labels of the united classes."""
        place = {name: label for label, name in enumerate(self.class_names)}
        return tuple(
            np.array([place[name] for name in split.class_names], np.int64) for split in self.splits
        )


AnyData = AnySplit | MixedSplit
"""What a loader reads."""


def united_classes(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Names of several lists, each once, by first appearance."""
    return tuple(dict.fromkeys(name for each in names for name in each))


def splits_of(data: AnyData) -> tuple[AnySplit, ...]:
    """The splits that are read."""
    return data.splits if isinstance(data, MixedSplit) else (data,)


def course_through(data: AnyData, batch: BatchSpec) -> Course:
    """Where the samples of each step come from.

    Raises:
        DataError: If there are too few images for one global batch, or none in a split with weight.
    """
    if isinstance(data, MixedSplit):
        _check_rows(data)
        rows = [split.num_rows for split in data.splits]
        return Mixture(rows, data.phases, global_samples=batch.global_samples)
    if data.num_rows < (batch.global_samples if batch.tail == "drop" else 1):
        raise DataError(
            f"the split {data.name!r} has {data.num_rows} images, fewer than one global batch of "
            f"{batch.global_samples}; lower batch.global_samples, add images or set batch.tail"
        )
    return Passes(data.num_rows, batch)


def _check_rows(data: MixedSplit) -> None:
    for index, split in enumerate(data.splits):
        if not split.num_rows and any(phase.weights[index] for phase in data.phases):
            raise DataError(
                f"data[{index}] of the mixture, split {split.name!r}, has no images; give it "
                "weight 0 or leave it out"
            )
