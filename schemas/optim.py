"""What a user says of the optimizer, its learning rate, and how long it works."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.spec import Semantic, Spec


class OptimSpec(Spec):
    """Optimizer, averages, and the learning rate: warm-up, schedule, cool-down.

    The rate grows evenly to `peak_lr`, follows the schedule, and goes down evenly to zero. Steps
    are those of the optimizer; samples are rounded up to whole steps.
    """

    algorithm: Semantic[Literal["adamw", "sgd"]] = "adamw"
    peak_lr: Semantic[float] = Field(gt=0)
    """Learning rate at the end of warm-up, for the global batch of the run."""
    warmup_steps: Semantic[int] = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    warmup_samples: Semantic[int | None] = Field(default=None, gt=0)
    """The same in samples, instead of steps."""
    schedule: Semantic[Literal["cosine", "linear", "constant", "rsqrt"]] = "cosine"
    """After the warm-up. `cosine` and `linear` reach zero at the end of the run; `constant` and
    `rsqrt` (Zhai et al. 2021) do not know the end and go on for any time."""
    timescale_steps: Semantic[int | None] = Field(default=None, gt=0)
    """Of `rsqrt`, which asks for it: t steps after the warm-up the rate is the peak's share
    1 / sqrt(1 + t / timescale_steps)."""
    cooldown_steps: Semantic[int] = Field(default=0, ge=0)
    """Last steps of a `constant` or `rsqrt` schedule, in which the rate goes down to zero."""
    cooldown_samples: Semantic[int | None] = Field(default=None, gt=0)
    """The same in samples, instead of steps."""
    weight_decay: Semantic[float] = Field(default=0.0, ge=0)
    """Decoupled (AdamW) or in the gradient (SGD); not on biases, norms, position, class token."""
    clip_norm: Semantic[float | None] = Field(default=1.0, gt=0)
    """Largest global gradient norm; null leaves gradients as they are."""
    beta1: Semantic[float] = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment; SGD's momentum."""
    beta2: Semantic[float] = Field(default=0.999, ge=0, lt=1)
    """AdamW's second moment."""
    eps: Semantic[float] = Field(default=1e-8, gt=0)
    """AdamW's denominator."""
    layer_decay: Semantic[float | None] = Field(default=None, gt=0, le=1)
    """For fine-tuning: each layer learns at this share of the rate of the layer above it. The head
    and the last norm have the whole rate, the last block of L this share of it, and patches,
    positions and tokens its power L + 1. Usual: 0.65 to 0.9. Null: all learn alike."""
    linear_probe_steps: Semantic[int] = Field(default=0, ge=0)
    """For fine-tuning: so many steps the head learns alone first (Kumar et al. 2022), on features
    of what `init` brought, and nothing else has a gradient. Then the optimizer begins anew, with
    warm-up and schedule in the steps that are left, and everything learns."""
    linear_probe_lr: Semantic[float | None] = Field(default=None, gt=0)
    """Rate of the head in those steps; it falls to zero by half a cosine."""
    ema_decay: Semantic[float | None] = Field(default=None, gt=0, lt=1)
    """Share of the old average that each update keeps: the model that is saved is then the
    exponential moving average of the weights after each update, such as 0.9999; null saves the last
    weights."""
    roll_back_steps: Semantic[int | None] = Field(default=None, ge=1)
    """A step whose loss or gradients are not finite updates nothing, and three of them in a row end
    the run. With N, they take it back to what it was at the last whole multiple of N steps, and on
    from there with the batches after the bad ones; twice to the same place ends it."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> "OptimSpec":
        for phase in ("warmup", "cooldown"):
            if getattr(self, f"{phase}_steps") and getattr(self, f"{phase}_samples"):
                raise ValueError(f"give {phase}_steps or {phase}_samples, not both")
        if bool(self.linear_probe_steps) != (self.linear_probe_lr is not None):
            raise ValueError(
                "give linear_probe_steps and linear_probe_lr together, such as 200 and 1e-3, or "
                "neither"
            )
        if (self.schedule == "rsqrt") != (self.timescale_steps is not None):
            raise ValueError(
                "timescale_steps goes with schedule: rsqrt, and that does not go without, such as "
                f"10_000; schedule is {self.schedule}"
            )
        if self.schedule in ("cosine", "linear") and (self.cooldown_steps or self.cooldown_samples):
            raise ValueError(
                f"schedule {self.schedule} reaches zero by itself; leave the cool-down out, or "
                "take schedule: constant or rsqrt"
            )
        return self

    def in_steps(self, global_samples: int) -> "OptimSpec":
        """The same without samples, for batches of that many."""
        given = {"warmup": self.warmup_samples, "cooldown": self.cooldown_samples}
        changes: dict[str, int | None] = {}
        for phase, samples in given.items():
            if samples is not None:
                steps = -(-samples // global_samples)
                changes |= {f"{phase}_steps": steps, f"{phase}_samples": None}
        return self.revise(**changes)


class DurationSpec(Spec):
    """How long to train: exactly one of the three."""

    steps: Semantic[int | None] = Field(default=None, gt=0)
    """Of the optimizer."""
    epochs: Semantic[float | None] = Field(default=None, gt=0)
    """Passes over the training split; whole global batches, the tail of an epoch is dropped."""
    samples: Semantic[int | None] = Field(default=None, gt=0)
    """Images seen, the same one as often as it comes; rounded to whole steps, at least one."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "DurationSpec":
        if [self.steps, self.epochs, self.samples].count(None) != 2:
            raise ValueError("give exactly one of steps, epochs and samples")
        return self

    def in_steps(self, global_samples: int) -> "DurationSpec":
        """The same without samples, for batches of that many."""
        if self.samples is None:
            return self
        return DurationSpec(steps=max(1, round(self.samples / global_samples)))
