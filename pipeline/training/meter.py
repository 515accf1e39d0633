"""How fast a run goes: images a second, what they wait for, and what share of the device they use.

The metrics are named in the README, under "Figures while it runs".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from schemas.runs import TrainingPace

RATE_WINDOW_SECONDS = 0.5
"""Shorter windows say nothing of throughput."""


@dataclass(frozen=True)
class Gauge:
    """What figures of speed and memory are read against, on one worker."""

    flops_per_image: float | None = None
    """Forward and backward, two for each multiply-add; None where nobody can count them."""
    peak_flops: float | None = None
    """Of this worker's device, in a second; None where it is not known."""
    memory_bytes: Callable[[], int] = field(default=lambda: 0)
    """What the run takes of the device's memory; 0 where nobody can tell."""


@dataclass(frozen=True)
class Pace:
    """How a run goes on average since it started, pauses included."""

    images_per_second: float
    eta_seconds: float
    """Until its last step, at this rate."""


def in_words(pace: TrainingPace) -> list[str]:
    """Loss, speed and time left, as far as they are known."""
    words = ["loss not finite" if pace.loss is None else f"loss {pace.loss:.4f}"]
    if pace.images_per_second is not None:
        words.append(f"{pace.images_per_second:,.0f} images/s")
    if pace.eta_seconds is not None and pace.step < pace.total_steps:
        words.append(f"{timedelta(seconds=round(pace.eta_seconds))} left")
    return words


class Meter:
    """Images per second and what goes with them, since the last reading and since the start."""

    def __init__(self, clock: Callable[[], float], gauge: Gauge, *, world_size: int) -> None:
        """Start a window on `clock`, which counts seconds.

        `gauge` is that of one worker of `world_size`, which are all alike.
        """
        self._clock = clock
        self._gauge = gauge
        self._world_size = world_size
        self._steps = 0
        self._began = clock()
        self._all_images = 0
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
        self._steps += 1
        if self._steps == 1:
            self._began = self._clock()  # the first step also makes ready what the others use
        else:
            self._all_images += images

    def read(self, *, at_once: bool) -> dict[str, float]:
        """The figures of a long enough window, which then ends; `at_once` takes a short one too."""
        seconds = self._clock() - self._since
        if not self._images or seconds <= 0 or (seconds < RATE_WINDOW_SECONDS and not at_once):
            return {}
        rate = self._images / seconds
        points = {
            "train/images_per_second": rate,
            "train/data_wait_ratio": min(1.0, self._waited / seconds),
        }
        gauge = self._gauge
        if gauge.flops_per_image is not None and gauge.peak_flops is not None:
            peak = gauge.peak_flops * self._world_size
            points["train/mfu_ratio"] = rate * gauge.flops_per_image / peak
        self.restart()
        return points

    def pace(self, steps_left: int) -> Pace | None:
        """From the end of the first step on; None before there is a second one."""
        seconds = self._clock() - self._began
        if self._steps < 2 or seconds <= 0:
            return None
        return Pace(self._all_images / seconds, steps_left * seconds / (self._steps - 1))
