"""A training stage on a cluster of named GPUs: what fits, how fast, how long, for how much."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cost.devices import Device
from pipeline.cost.flops import model_flops
from pipeline.cost.layout import Layout, fits, lay_out
from pipeline.cost.memory import training_memory
from pipeline.cost.stages import Training
from schemas.estimates import DeviceEstimate, StageEstimate, StageMemory

_SECONDS = 3600
_LAUNCHES_SECONDS = 5e-3
"""A ViT of twelve blocks starts about a thousand kernels forward and backward, 5 us each."""


@dataclass(frozen=True)
class Cluster:
    """What a stage is imagined on."""

    devices: Sequence[Device]
    """Each is a cluster of its own."""
    gpus: int | None
    """At most so many; None: the workers that the spec asks for."""
    mfu: float
    """Share of the peak that training gets."""
    price_per_gpu_hour: float | None


def on_clusters(
    name: str, training: Training, cluster: Cluster, *, steps: int | None, problem: str | None
) -> StageEstimate:
    """Everything that specs tell of a stage.

    images/s = GPUs x peak x MFU / FLOPs of one image in training; hours = images / that. FLOPs that
    are recomputed count as work, so that `recompute` costs its third of the speed.

    Args:
        name: Of the stage.
        training: Its spec and model.
        cluster: What to imagine.
        steps: Of the optimizer in the whole stage; None where nobody knows.
        problem: Why nobody knows.
    """
    spec, model = training.spec, training.model
    world = _world(training, cluster.gpus)
    images = None if steps is None else steps * spec.batch.global_samples
    found = [
        _on(training, device, cluster, world=world, images=images) for device in cluster.devices
    ]
    micro_batch = max(each.micro_batch for each in found)
    return StageEstimate(
        stage=name,
        kind=spec.kind,
        problem=problem,
        parameters=training.parameters,
        forward_flops_per_image=model_flops(model),
        training_flops_per_image=training.flops_per_image,
        steps=steps,
        images=images,
        flops=None if images is None else float(images) * training.flops_per_image,
        precision=spec.precision,
        gpus=world,
        micro_batch=micro_batch,
        memory=tuple(
            _memory(training, stage, world=world, micro_batch=micro_batch)
            for stage in ((0,) if world == 1 else (0, 1, 2, 3))
        ),
        devices=tuple(found),
    )


def _world(training: Training, gpus: int | None) -> int:
    """The most workers up to `gpus` that share the batch evenly, pairs of a mixture together."""
    if gpus is None or training.spec.resources.engine == "torch":
        return training.spec.worlds()[0]
    samples, unit = training.spec.batch.global_samples, 2 if training.spec.augment.mixes else 1
    given = training.spec.resources.micro_batch
    whole = given if isinstance(given, int) else unit
    shares = [n for n in range(min(gpus, samples), 0, -1) if samples % (n * whole) == 0]
    return shares[0] if shares else 1


def _on(
    training: Training, device: Device, cluster: Cluster, *, world: int, images: int | None
) -> DeviceEstimate:
    spec = training.spec
    layout = lay_out(spec, training.model, world=world, device_bytes=device.memory_bytes)
    peak = _peak(training, layout, world)
    flops = world * cluster.mfu * device.flops(bf16=spec.precision != "fp32")
    rate = flops / training.flops_per_image
    hours = None if images is None else images / rate / _SECONDS
    price = cluster.price_per_gpu_hour
    seconds_of_a_pass = layout.micro_batch * world / rate
    return DeviceEstimate(
        device=device.name,
        memory_bytes=device.memory_bytes,
        zero_stage=layout.zero_stage,
        micro_batch=layout.micro_batch,
        accumulation=layout.accumulation,
        peak_bytes=peak,
        fits=fits(peak, device.memory_bytes),
        images_per_second=rate,
        too_small=seconds_of_a_pass < _LAUNCHES_SECONDS,
        hours=hours,
        cost=None if hours is None or price is None else hours * world * price,
    )


def _peak(training: Training, layout: Layout, world: int) -> float:
    found = training_memory(
        training.model,
        training.spec,
        zero_stage=layout.zero_stage,
        world=world,
        micro_batch=layout.micro_batch,
    )
    return found.peak


def _memory(training: Training, stage: int, *, world: int, micro_batch: int) -> StageMemory:
    found = training_memory(
        training.model, training.spec, zero_stage=stage, world=world, micro_batch=micro_batch
    )
    state = found.state
    return StageMemory(
        zero_stage=stage,
        weights_bytes=state.weights + state.master,
        gradients_bytes=state.gradients,
        optimizer_bytes=state.moments + state.average,
        activations_bytes=found.activations,
        peak_bytes=found.peak,
    )
