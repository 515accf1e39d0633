"""The learning rate of a step and the number of steps: pure functions of the spec."""

import math

from schemas.errors import SpecError
from schemas.training import DurationSpec, OptimSpec


def learning_rate(step: int, optim: OptimSpec, total_steps: int) -> float:
    """The rate for optimizer step `step`, which counts from 0.

    Warm-up reaches `peak_lr` at step `warmup_steps`; from there cosine and linear decay reach zero
    at `total_steps`, one step after the last.

    Raises:
        ValueError: If `step` is not in [0, total_steps).
        SpecError: If warm-up does not end before the run does.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}) but is {step}")
    if optim.warmup_steps >= total_steps:
        raise SpecError(
            f"optim.warmup_steps is {optim.warmup_steps} but the run has only {total_steps} steps; "
            "warm-up must end before the run does",
            hint="lower optim.warmup_steps or raise duration",
        )
    if step < optim.warmup_steps:
        return optim.peak_lr * step / optim.warmup_steps
    progress = (step - optim.warmup_steps) / (total_steps - optim.warmup_steps)
    return optim.peak_lr * _decay(optim.schedule, progress)


def _decay(schedule: str, progress: float) -> float:
    """Share of the peak that is left, for `progress` in [0, 1)."""
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if schedule == "linear" else 1.0


def total_steps(duration: DurationSpec, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; a part of an epoch is rounded to whole steps, at least 1.

    Raises:
        SpecError: If an epoch has no whole batch.
    """
    if steps_per_epoch < 1:
        raise SpecError(
            "the training split has fewer samples than one global batch",
            hint="lower batch.global_samples",
        )
    if duration.steps is not None:
        return duration.steps
    return max(1, round((duration.epochs or 0.0) * steps_per_epoch))
