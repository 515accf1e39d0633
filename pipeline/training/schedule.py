"""The learning rate of a step and the number of steps: pure functions of the spec."""

import math

from schemas.errors import SpecError
from schemas.optim import DurationSpec, OptimSpec


def learning_rate(step: int, optim: OptimSpec, total_steps: int) -> float:
    """The rate for optimizer step `step`, which counts from 0.

    In a linear probe of N steps, half a cosine falls from `linear_probe_lr` to zero; all else
    counts from step N. Warm-up reaches `peak_lr` at step `warmup_steps`; cosine and linear decay,
    and a cool-down, reach zero at `total_steps`, one step after the last.

    Raises:
        ValueError: If `step` is not in [0, total_steps), or the spec counts in samples.
        SpecError: If warm-up and cool-down do not fit into the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}) but is {step}")
    if optim.warmup_samples or optim.cooldown_samples:
        raise ValueError("samples are turned into steps before")
    probe = optim.linear_probe_steps
    _check_fit(optim, total_steps - probe)
    if step < probe:
        assert optim.linear_probe_lr is not None, "the spec sees to it"  # noqa: S101
        return optim.linear_probe_lr * _half_cosine(step / probe)
    return _after_probe(step - probe, optim, total_steps - probe)


def _after_probe(step: int, optim: OptimSpec, total_steps: int) -> float:
    if step < optim.warmup_steps:
        return optim.peak_lr * step / optim.warmup_steps
    rate = optim.peak_lr * _decay(optim, step - optim.warmup_steps, total_steps)
    left = total_steps - step
    return rate if left >= optim.cooldown_steps else rate * left / optim.cooldown_steps


def _check_fit(optim: OptimSpec, total_steps: int) -> None:
    if optim.warmup_steps >= total_steps:
        raise SpecError(
            f"optim.warmup_steps is {optim.warmup_steps} but the run has only {total_steps} steps"
            f"{' after its linear probe' if optim.linear_probe_steps else ''}; "
            "warm-up must end before the run does",
            hint="lower optim.warmup_steps or raise duration",
        )
    if optim.warmup_steps + optim.cooldown_steps > total_steps:
        raise SpecError(
            f"warm-up and cool-down of {optim.warmup_steps} and {optim.cooldown_steps} steps do "
            f"not fit into a run of {total_steps} steps",
            hint="lower optim.cooldown_steps or raise duration",
        )


def _decay(optim: OptimSpec, done: int, total_steps: int) -> float:
    """Share of the peak that is left, `done` steps after the warm-up."""
    if optim.timescale_steps is not None:
        return 1.0 / math.sqrt(1.0 + done / optim.timescale_steps)
    progress = done / (total_steps - optim.warmup_steps)
    if optim.schedule == "cosine":
        return _half_cosine(progress)
    return 1.0 - progress if optim.schedule == "linear" else 1.0


def _half_cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def total_steps(duration: DurationSpec, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; a part of an epoch is rounded to whole steps, at least 1.

    Raises:
        ValueError: If the duration is given in samples.
        SpecError: If an epoch has no whole batch.
    """
    if duration.samples is not None:
        raise ValueError("samples are turned into steps before")
    if steps_per_epoch < 1:
        raise SpecError(
            "the training split has fewer samples than one global batch",
            hint="lower batch.global_samples",
        )
    if duration.steps is not None:
        return duration.steps
    return max(1, round((duration.epochs or 0.0) * steps_per_epoch))
