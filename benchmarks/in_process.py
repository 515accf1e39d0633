"""Ports for builds inside a benchmark's own process."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.data.staging import BuildTools

X = TypeVar("X")
Y = TypeVar("Y")


class SerialPool:
    """A `TaskPool` of one: one task after the other."""

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,  # noqa: ARG002
        memory_bytes: int = 0,  # noqa: ARG002
    ) -> Iterator[tuple[X, Y]]:
        """Yield each item with its result."""
        return ((item, function(item)) for item in items)


class NeverStop:
    """A `StopSignal` that nobody gives."""

    def requested(self) -> bool:
        """Nobody asks."""
        return False


def serial_tools(progress: Path) -> BuildTools:
    """What a quiet build in this process works with."""
    return BuildTools(SerialPool(), progress, NeverStop(), lambda _line: None)
