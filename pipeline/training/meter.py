"""How fast a run goes: images a second, and what they wait for."""

from collections.abc import Callable

RATE_WINDOW_SECONDS = 0.5
"""Shorter windows say nothing of throughput."""


class Meter:
    """Images per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start a window on `clock`, which counts seconds."""
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self._since = self._clock()
        self._waited = 0.0
        self._images = 0

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._waited += seconds

    def stepped(self, images: int) -> None:
        """Add the images of one step, of all ranks."""
        self._images += images

    def read(self, *, at_once: bool) -> dict[str, float]:
        """The figures of a long enough window, which then ends; `at_once` takes a short one too."""
        seconds = self._clock() - self._since
        if not self._images or seconds <= 0 or (seconds < RATE_WINDOW_SECONDS and not at_once):
            return {}
        points = {
            "train/images_per_second": self._images / seconds,
            "train/data_wait_ratio": min(1.0, self._waited / seconds),
        }
        self.restart()
        return points
