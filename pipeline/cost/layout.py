"""How a training stage is spread over its world: ZeRO stage, micro-batch, accumulation."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cost.memory import training_memory
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.model import ViTSpec
from schemas.training import TrainingSpec

USABLE_RATIO = 0.8
"""Share of a device that the estimate may fill: kernels' workspaces, gradients of activations,
images, fragments and the libraries themselves need the rest."""
GOOD_MICRO_BATCH = 32
"""From here on a device is busy: a higher ZeRO stage is not taken for the sake of more."""
_GIGA = 1e9


@dataclass(frozen=True)
class Layout:
    """What was chosen, and why."""

    zero_stage: int
    micro_batch: int
    """Samples in one forward on one worker."""
    accumulation: int
    """Micro-batches in one optimizer step on one worker."""
    reason: str
    """A sentence without its full stop."""


def lay_out(
    spec: TrainingSpec,
    model: BackboneSpec,
    *,
    world: int,
    device_bytes: float,
    largest_micro_batch: int | None = None,
) -> Layout:
    """Fill in what `resources.zero_stage` and `resources.micro_batch` leave open.

    `zero_stage: auto` is the lowest stage in which the micro-batch fits, from 0 for one worker and
    from 1 for several or with an offloaded optimizer; `micro_batch: auto` the largest that fits in
    it. Where both are open, the stage has to hold a micro-batch of up to `GOOD_MICRO_BATCH`, or
    else the smallest. Where nothing fits, or where a library's model has no formula, the reason
    says what was taken instead.

    Args:
        spec: Of the stage.
        model: Resolved, with its head.
        world: Workers; they share the batch evenly.
        device_bytes: Memory of the smallest device among them.
        largest_micro_batch: Found to be the most by experience; None: nothing is known.
    """
    sizes = _micro_batches(spec, world, largest_micro_batch)
    stages = _stages(spec, world)
    if not isinstance(model, ViTSpec | ResNetSpec):
        return _made(spec, world, (stages[0], sizes[0], f"no formula for a model of {model.type}"))
    is_open = spec.resources.micro_batch == "auto"
    good = next((size for size in sizes if size <= GOOD_MICRO_BATCH), sizes[-1])
    wanted = (good, sizes[-1]) if is_open else (sizes[0],)

    def needs(stage: int, size: int) -> float:
        found = training_memory(model, spec, zero_stage=stage, world=world, micro_batch=size)
        return found.peak

    for target in wanted:
        for stage in stages:
            if fits(needs(stage, target), device_bytes):
                fitting = (size for size in sizes if fits(needs(stage, size), device_bytes))
                size = next(fitting) if is_open else target
                why = f"{_giga(needs(stage, size))} of {_giga(device_bytes)} by the estimate"
                return _made(spec, world, (stage, size, why))
    size = sizes[-1] if is_open else sizes[0]
    why = f"{_giga(needs(stages[-1], size))} by the estimate, more than fits in "
    return _made(spec, world, (stages[-1], size, f"{why}{_giga(device_bytes)}"))


def fits(needed_bytes: float, device_bytes: float) -> bool:
    """Whether an estimate leaves enough of a device free."""
    return needed_bytes <= USABLE_RATIO * device_bytes


def _micro_batches(spec: TrainingSpec, world: int, largest: int | None) -> list[int]:
    """Every permitted size that shares a worker's part evenly, the largest first.

    Pairs that are mixed stay together, so that it is even then. Where no size is small enough, the
    smallest of all.
    """
    share, unit = spec.batch.global_samples // world, 2 if spec.augment.mixes else 1
    sizes = [size for size in range(share, 0, -1) if share % size == 0 and size % unit == 0]
    given = spec.resources.micro_batch
    limit = min(given if isinstance(given, int) else share, largest or share)
    return [size for size in sizes if size <= limit] or sizes[-1:]


def _stages(spec: TrainingSpec, world: int) -> Sequence[int]:
    given = spec.resources.zero_stage
    if spec.resources.engine == "torch":
        return (0,)
    if isinstance(given, int):
        return (given,)
    return (1, 2, 3) if world > 1 or spec.resources.offload_optimizer else (0,)


def _made(spec: TrainingSpec, world: int, chosen: tuple[int, int, str]) -> Layout:
    stage, size, why = chosen
    return Layout(stage, size, spec.batch.global_samples // world // size, why)


def _giga(number: float) -> str:
    return f"{number / _GIGA:.3g} GB"
