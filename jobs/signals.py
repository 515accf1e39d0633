"""What SIGINT and SIGTERM mean to a run: the first asks for a clean stop, the second ends it."""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Listens for the length of a `with` block."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        """Call `on_first` at the first signal; it must be quick."""
        self._on_first = on_first
        self._received = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Begin to listen."""
        for number in _SIGNALS:
            self._former[number] = signal.getsignal(number)
        self.listen()
        return self

    def listen(self) -> None:
        """Listen again, after a library (Ray, when it starts) has put its own handlers in place."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the signals as they were."""
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]  # what signal.signal returned

    @property
    def requested(self) -> bool:
        """Whether anybody asked for a stop."""
        return self._received > 0

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received += 1
        if self._received == 1:
            self._on_first()
            return
        kill(children())
        os._exit(128 + number)


def children() -> list[psutil.Process]:
    """Every process that this one has started, directly or not."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
