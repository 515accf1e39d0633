"""Bytes of training state on each worker: what engines hold, and what they take for a moment."""

from typing import Literal, NamedTuple

from schemas.optim import OptimSpec

FP32_BYTES = 4
BUCKET_NUMBERS = 50_000_000
"""Numbers that ZeRO reduces at once, at most; fewer where the model has fewer."""
_ALL_REDUCE_NUMBERS = 500_000_000
"""The same in stage 0, which is DeepSpeed's own."""
ZeroStage = Literal[0, 1, 2, 3]


class StateBytes(NamedTuple):
    """On one worker, between a backward pass and the update; all in fp32."""

    weights: float
    """Those that the model runs with."""
    master: float
    """The part of the weights that this worker updates, where that is a copy."""
    gradients: float
    moments: float
    average: float = 0
    """EMA."""
    validation: float = 0
    """A copy of the weights to validate with."""
    buckets: float = 0
    """Of ZeRO-3, held all the time."""

    @property
    def held(self) -> float:
        """All of it."""
        return sum(self)


def state_bytes(  # noqa: PLR0913 - all are named where it is called
    parameters: int,
    optim: OptimSpec,
    *,
    zero_stage: int,
    world: int,
    bf16: bool = False,
    validates: bool = False,
    frozen: int = 0,
) -> StateBytes:
    """What an engine holds for P parameters on each of N workers, and for others that are frozen.

    | stage | weights | master | gradients | moments (AdamW; SGD half, without momentum none) |
    |---|---|---|---|---|
    | 0, and plain torch | 4 P | - | 4 P | 8 P |
    | 1, 2 | 4 P | 4 P / N | 4 P / N | 8 P / N |
    | 3 | 4 P / N | 4 P / N | 4 P / N | 8 P / N |

    Of what is frozen there are weights alone, as of the others.
    An average (`ema_decay`) is spread as moments are, 4 P or 4 P / N; whoever `validates` has a
    whole copy to do it with, 4 P.
    Stage 3 keeps a bucket of `BUCKET_NUMBERS` numbers, and another in bf16.

    What is not in it: a step counter of 4 bytes for each tensor of the optimizer; padding, below
    2 N numbers for each parameter group (stages 1, 2) or N for each tensor (stage 3); and, in
    stages 1 and 2, gradients of a tensor that is cut by a border are whole on both sides.
    """
    part = parameters * FP32_BYTES / (world if zero_stage else 1)
    whole = float((parameters + frozen) * FP32_BYTES)
    bucket = -(-min(parameters + frozen, BUCKET_NUMBERS) // 1024) * 1024
    return StateBytes(
        weights=whole / world if zero_stage == 3 else whole,
        master=part if zero_stage else 0.0,
        gradients=part,
        moments=part * moments_of(optim),
        average=part if optim.ema_decay is not None else 0.0,
        validation=whole if validates else 0.0,
        buckets=bucket * (6.0 if bf16 else 4.0) if zero_stage == 3 else 0.0,
    )


def moments_of(optim: OptimSpec) -> int:
    """Numbers that the optimizer keeps for each parameter."""
    return 2 if optim.algorithm == "adamw" else int(optim.beta1 > 0)


def backward_bytes(
    parameters: int, *, zero_stage: int, world: int, accumulation: int, bf16: bool
) -> float:
    """About what is taken besides while gradients are computed and reduced, on the high side.

    Stage 0 reduces in a copy. Stage 1 has all gradients until the last micro-batch; 1 and 2 reduce
    in buckets, 2 has this worker's part twice when it accumulates. Stage 3 gathers weights and
    gradients a few buckets at a time. bf16 has buckets of its own.
    """
    whole = float(parameters * FP32_BYTES)
    bucket = float(min(parameters, BUCKET_NUMBERS) * FP32_BYTES)
    in_bf16 = bucket if bf16 and zero_stage else 0.0
    if zero_stage == 0:
        return min(parameters, _ALL_REDUCE_NUMBERS) * FP32_BYTES if world > 1 else 0.0
    if zero_stage == 1:
        return whole + bucket + in_bf16
    if zero_stage == 2:
        return 2 * bucket + (whole / world if accumulation > 1 else 0.0) + in_bf16
    return min(6 * bucket, 2 * whole + bucket) + in_bf16


def update_bytes(parameters: int, *, zero_stage: int, world: int) -> float:
    """What the update takes besides: three more copies of this worker's part, from stage 1.

    Stage 0 updates tensor by tensor, which is little.
    """
    return 3.0 * parameters * FP32_BYTES / world if zero_stage else 0.0
