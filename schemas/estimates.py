"""What `vitrail estimate --output json` says: a training stage on named GPUs, before it runs."""

from typing import Literal

from schemas.spec import Semantic, Spec


class StageMemory(Spec):
    """Of one worker, in one ZeRO stage; bytes."""

    zero_stage: Semantic[int]
    weights_bytes: Semantic[float]
    """With the part that this worker updates, where that is a copy."""
    gradients_bytes: Semantic[float]
    optimizer_bytes: Semantic[float]
    """Moments, and the average of the weights."""
    activations_bytes: Semantic[float]
    """Of one micro-batch."""
    peak_bytes: Semantic[float]
    """With what is taken for a moment while gradients are reduced, or while weights are updated."""


class DeviceEstimate(Spec):
    """A stage on workers with one GPU of a kind each."""

    device: Semantic[str]
    memory_bytes: Semantic[int]
    """Of one GPU."""
    zero_stage: Semantic[int]
    micro_batch: Semantic[int]
    accumulation: Semantic[int]
    peak_bytes: Semantic[float]
    fits: Semantic[bool]
    """Whether the peak leaves a fifth of the memory free."""
    images_per_second: Semantic[float]
    """Of all workers, at the assumed share of the peak."""
    too_small: Semantic[bool]
    """Whether a forward and backward pass is so short that starting its kernels takes as long: the
    speed is then out of reach."""
    hours: Semantic[float | None]
    """Of the whole stage; None where its length is not known."""
    cost: Semantic[float | None]
    """Of all GPUs for these hours; None without a price."""


class StageEstimate(Spec):
    """One training stage."""

    stage: Semantic[str]
    kind: Semantic[str]
    problem: Semantic[str | None] = None
    """Why there is no estimate, or an incomplete one."""
    parameters: Semantic[int | None] = None
    forward_flops_per_image: Semantic[float | None] = None
    """Of the model alone, as it is evaluated."""
    training_flops_per_image: Semantic[float | None] = None
    """Forward and backward, with a teacher and what is recomputed."""
    steps: Semantic[int | None] = None
    """Optimizer steps of the whole stage, a search's trials included."""
    images: Semantic[int | None] = None
    """Images seen in them, each as often as it is seen."""
    flops: Semantic[float | None] = None
    """Of the whole stage."""
    precision: Semantic[str | None] = None
    gpus: Semantic[int | None] = None
    """Workers, one GPU each: as many as asked for that share the batch evenly."""
    micro_batch: Semantic[int | None] = None
    """Of `memory`; on a device it may be smaller."""
    memory: Semantic[tuple[StageMemory, ...]] = ()
    devices: Semantic[tuple[DeviceEstimate, ...]] = ()


class EstimateDocument(Spec):
    """`vitrail estimate --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    experiment: Semantic[str]
    mfu: Semantic[float]
    """Assumed share of a GPU's peak."""
    price_per_gpu_hour: Semantic[float | None]
    stages: Semantic[tuple[StageEstimate, ...]]
