"""Sides that take turns: what they are compared by, and how our own loop takes part.

Other work on a machine comes and goes; sides that alternate meet the same of it, so that the
ratios of neighbours say more than the seconds of each.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.feed.batches import Batch
from pipeline.data.feed.course import Places

OURS = "ours"
_RESAMPLES = 10_000


def median_interval(ratios: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    draws = rng.choice(np.asarray(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def held_batch(image_px: tuple[int, int], *, samples: int, classes: int, seed: int) -> Batch:
    """A batch of noise, as a loader would yield it."""
    rng = np.random.default_rng(seed)
    number = np.arange(samples)
    return Batch(
        rng.integers(0, 256, (samples, *image_px, 3), dtype=np.uint8),
        rng.integers(0, classes, samples).astype(np.int64),
        np.zeros((samples, 16), np.uint8),
        Places(np.zeros_like(number), np.zeros_like(number), number),
    )


@dataclass
class Turns:
    """Batches for our loop, which lets the other sides have their turn between its steps.

    A step of ours is all that the loop does from one batch to the next. In each round the sides do
    `block` steps each and take turns at who is first; the first round only warms up.
    """

    batch: Batch
    others: Mapping[str, Callable[[], object]]
    """One step of each other side."""
    rounds: int
    block: int
    seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    """Side -> for each round, the seconds of its steps."""

    @property
    def total_steps(self) -> int:
        """Of our loop; after the last it does not come back to be timed, so there is one more."""
        return (self.rounds + 1) * self.block + 1

    def batches(self, start_step: int) -> Iterator[tuple[Batch, ...]]:
        """The same batch again and again."""
        assert not start_step, "nothing goes on here"
        for index in range(self.rounds + 1):
            if index % 2:
                self._others_turn()
            ours = self.seconds.setdefault(OURS, [])
            ours.append([])
            for _ in range(self.block):
                began = time.perf_counter()
                yield (self.batch,)
                ours[-1].append(time.perf_counter() - began)
            if not index % 2:
                self._others_turn()
        for side in self.seconds.values():
            del side[0]
        yield (self.batch,)

    def figures(self) -> dict[str, float]:
        """Nothing is loaded."""
        return {}

    def fastest(self, side: str) -> np.ndarray:
        """Seconds of the fastest step of each round: other work only ever adds time."""
        return np.array([min(steps) for steps in self.seconds[side]])

    def _others_turn(self) -> None:
        for name, step in self.others.items():
            spent = []
            for _ in range(self.block):
                began = time.perf_counter()
                step()
                spent.append(time.perf_counter() - began)
            self.seconds.setdefault(name, []).append(spent)
