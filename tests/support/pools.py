"""Task pools that run in this process: in order, or shuffled, in threads and with failures."""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from infra.serial_pool import SerialPool

X = TypeVar("X")
Y = TypeVar("Y")


class ChaosPool:
    """Threads; tasks end in a shuffled order and some run twice, as after a lost worker."""

    def __init__(self, *, workers: int, seed: int, repeat_ratio: float = 0.3) -> None:
        self._workers = workers
        self._random = random.Random(seed)
        self._repeat_ratio = repeat_ratio

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,
        memory_bytes: int = 0,
        gpus: float = 0,
        at_once: int | None = None,
    ) -> Iterator[tuple[X, Y]]:
        shuffled = list(items)
        self._random.shuffle(shuffled)
        repeats = [self._random.random() < self._repeat_ratio for _ in shuffled]

        def work(task: tuple[X, bool]) -> Y:
            item, again = task
            if again:
                function(item)
            return function(item)

        with ThreadPoolExecutor(self._workers) as threads:
            yield from zip(
                shuffled,
                threads.map(work, zip(shuffled, repeats, strict=True)),
                strict=True,
            )


class DyingPool(SerialPool):
    """Runs so many tasks, then dies as a killed driver would: nothing after it is done."""

    def __init__(self, survives: int) -> None:
        self._left = survives

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,
        memory_bytes: int = 0,
        gpus: float = 0,
        at_once: int | None = None,
    ) -> Iterator[tuple[X, Y]]:
        for pair in super().map(function, items, label=label):
            if self._left == 0:
                raise KilledError(label)
            self._left -= 1
            yield pair


class KilledError(Exception):
    """The driver is gone."""


class StopAfter:
    """A stop is asked for at the n-th look."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0
