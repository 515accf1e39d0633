"""Which samples each optimizer step takes: pure functions of the step, without a state.

A course says, for any step and rank, from which shard set, in which of its epochs and from which
position of that epoch each sample comes; `pipeline.data.order` then says where it lies. One split
is passed over epoch by epoch; a mixture takes from several by whole-numbered weights.

Memory is O(phases x sets + weights), and any step costs the same.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import Int64s, rank_positions, steps_per_epoch
from schemas.samples import BatchSpec, MixturePhase


@dataclass(frozen=True)
class Places:
    """Some samples of a run, as parallel arrays."""

    source: Int64s
    """Index of the shard set."""
    epoch: Int64s
    """Pass over that set, from 0."""
    position: Int64s
    """In the epoch. From its number of rows on, the rows are repeated from the first."""
    weight: NDArray[np.float32] | None = None
    """How much each sample counts, 1 on average; None where all count alike."""

    def __len__(self) -> int:
        return len(self.position)

    def part(self, start: int, stop: int) -> "Places":
        """Some consecutive samples, as views."""
        return Places(
            self.source[start:stop],
            self.epoch[start:stop],
            self.position[start:stop],
            None if self.weight is None else self.weight[start:stop],
        )


class Course(Protocol):
    """Where samples come from, step by step."""

    steps_per_epoch: int
    """Optimizer steps of an epoch."""

    def places(self, steps: range, *, rank: int, world_size: int) -> Places:
        """The samples of a rank in some consecutive steps, in order."""
        ...

    def steps_of(self, source: int, *, epoch: int, position: int) -> list[int]:
        """The steps that take a row, in one pass over its set: the inverse of `places`."""
        ...


class Passes:
    """One split, epoch after epoch."""

    def __init__(self, rows: int, batch: BatchSpec) -> None:
        """Fix the number of steps of an epoch by what happens to its tail."""
        self._rows = rows
        self._batch = batch
        whole = steps_per_epoch(rows, batch.global_samples)
        self.steps_per_epoch = whole if batch.tail == "drop" else -(-rows // batch.global_samples)

    @property
    def repeated_per_epoch(self) -> int:
        """Samples of an epoch that fill its last batch."""
        given = self.steps_per_epoch * self._batch.global_samples
        return max(0, given - self._rows)

    def places(self, steps: range, *, rank: int, world_size: int) -> Places:
        """See `Course`."""
        samples = self._batch.global_samples
        own = rank_positions(0, samples, rank=rank, world_size=world_size)
        epoch, step = np.divmod(np.asarray(steps, np.int64), self.steps_per_epoch)
        position = (step[:, None] * samples + own).ravel()
        return Places(
            source=np.zeros_like(position),
            epoch=np.repeat(epoch, len(own)),
            position=position,
            weight=self._weights(step, position) if self._batch.tail == "exact" else None,
        )

    def steps_of(self, source: int, *, epoch: int, position: int) -> list[int]:  # noqa: ARG002
        """See `Course`."""
        samples = self._batch.global_samples
        given = self.steps_per_epoch * samples
        first = epoch * self.steps_per_epoch
        return sorted({first + at // samples for at in range(position, given, self._rows)})

    def _weights(self, step: Int64s, position: Int64s) -> NDArray[np.float32]:
        samples = self._batch.global_samples
        real = np.minimum(samples, self._rows - step * samples)
        each = np.repeat(samples / real, len(position) // len(step))
        return np.where(position < self._rows, each, 0.0).astype(np.float32)


class Mixture:
    """Several splits by weights that may change at a step; each is passed over at its own pace."""

    def __init__(
        self, rows: Sequence[int], phases: Sequence[MixturePhase], *, global_samples: int
    ) -> None:
        """Lay out the cycle of every phase, and count what each set gave before it."""
        self._rows = np.asarray(rows, np.int64)
        self._samples = global_samples
        self.steps_per_epoch = max(1, sum(rows) // global_samples)
        self._starts = [phase.from_step * global_samples for phase in phases]
        self._cycles = [_Cycle(phase.weights) for phase in phases]
        self._given = [np.zeros(len(rows), np.int64)]
        for index, cycle in enumerate(self._cycles[:-1]):
            length = self._starts[index + 1] - self._starts[index]
            self._given.append(self._given[-1] + cycle.totals(length))

    def places(self, steps: range, *, rank: int, world_size: int) -> Places:
        """See `Course`."""
        own = rank_positions(0, self._samples, rank=rank, world_size=world_size)
        parts = [self._step(step, own) for step in steps]
        source, drawn = (np.concatenate(column) for column in zip(*parts, strict=True))
        epoch, position = np.divmod(drawn, self._rows[source])
        return Places(source, epoch, position)

    def steps_of(self, source: int, *, epoch: int, position: int) -> list[int]:
        """See `Course`."""
        drawn = epoch * int(self._rows[source]) + position
        given = [int(before[source]) for before in self._given]
        phase = bisect_right(given, drawn) - 1
        index = self._cycles[phase].index(source, drawn - given[phase])
        return [] if index is None else [(self._starts[phase] + index) // self._samples]

    def _step(self, step: int, own: Int64s) -> tuple[Int64s, Int64s]:
        """Set of each sample, and how many that set gave before."""
        first = step * self._samples
        phase = bisect_right(self._starts, first) - 1
        source, within = self._cycles[phase].at(first - self._starts[phase] + own)
        return source, self._given[phase][source] + within


class _Cycle:
    """The repeating order in which sets take turns."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = np.asarray(weights, np.int64) // math.gcd(*weights)
        self._turns = turns(self._weights.tolist())
        self._before = np.empty_like(self._turns)
        for source in range(len(weights)):
            mine = self._turns == source
            self._before[mine] = np.arange(np.count_nonzero(mine))

    def at(self, index: Int64s) -> tuple[Int64s, Int64s]:
        """Set of some samples of the phase, and how many it gave before in the phase."""
        cycle, turn = np.divmod(index, len(self._turns))
        source = self._turns[turn]
        return source, cycle * self._weights[source] + self._before[turn]

    def index(self, source: int, within: int) -> int | None:
        """The sample of the phase that is a set's `within`-th; None if the set gives none."""
        weight = int(self._weights[source])
        if not weight:
            return None
        cycle, before = divmod(within, weight)
        return cycle * len(self._turns) + int(np.flatnonzero(self._turns == source)[before])

    def totals(self, length: int) -> Int64s:
        """What each set gives in the first `length` samples."""
        cycles, rest = divmod(length, len(self._turns))
        part = np.bincount(self._turns[:rest], minlength=len(self._weights))
        totals: Int64s = cycles * self._weights + part
        return totals


def turns(weights: Sequence[int]) -> Int64s:
    """One cycle in which set j has `weights[j]` turns, spread so that none is ever a turn off.

    Tijdeman's rule for the chairman assignment problem (1980): of those that would not be too
    early, the one whose turn is due first. The largest-lag-first rule of load balancers can be
    more than one turn off with many sets.
    """
    total = sum(weights)
    scale = max(2, 2 * sum(weight > 0 for weight in weights) - 2)
    periods = [math.lcm(*filter(None, weights)) // weight if weight else 0 for weight in weights]
    given = [0] * len(weights)
    order = np.empty(total, np.int64)
    for turn in range(total):
        due = [
            ((scale * (count + 1) - 1) * period, source)
            for source, (weight, count, period) in enumerate(
                zip(weights, given, periods, strict=True)
            )
            if weight and scale * (weight * (turn + 1) - count * total) >= total
        ]
        order[turn] = min(due)[1]
        given[order[turn]] += 1
    return order
