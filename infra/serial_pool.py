"""`TaskPool` of this process alone, for work too small to start a cluster for."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


class SerialPool:
    """Fulfils `pipeline.ports.TaskPool`: one task after the other, in the order given."""

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,  # noqa: ARG002  # the port's; there are no other processes to name
        memory_bytes: int = 0,  # noqa: ARG002  # likewise; nothing runs beside a task
        gpus: float = 0,  # noqa: ARG002  # likewise
        at_once: int | None = None,  # noqa: ARG002  # likewise
    ) -> Iterator[tuple[X, Y]]:
        """Yield each item with its result."""
        return ((item, function(item)) for item in items)


class NeverStop:
    """Fulfils `pipeline.ports.StopSignal` where Ctrl-C simply ends the process."""

    def requested(self) -> bool:
        """Nobody asks."""
        return False
