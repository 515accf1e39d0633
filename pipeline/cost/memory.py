"""Memory of a worker while it trains: state, activations, and what comes and goes."""

from typing import NamedTuple

from pipeline.cost.activations import activation_bytes
from pipeline.cost.learning import learning
from pipeline.cost.state import StateBytes, backward_bytes, state_bytes, update_bytes
from schemas.backbones import ResNetSpec
from schemas.model import ViTSpec
from schemas.training import TrainingSpec


class MemoryBytes(NamedTuple):
    """Of one worker."""

    state: StateBytes
    activations: int
    """Of one micro-batch."""
    backward: float
    """Buckets and the like, while gradients are computed."""
    update: float
    """Copies, while the optimizer steps: activations are gone by then."""

    @property
    def peak(self) -> float:
        """At most at any time. A teacher, images and the libraries themselves are not in it."""
        return self.state.held + max(self.activations + self.backward, self.update)


def training_memory(
    model: ViTSpec | ResNetSpec,
    spec: TrainingSpec,
    *,
    zero_stage: int,
    world: int,
    micro_batch: int,
) -> MemoryBytes:
    """What a stage needs on each of `world` workers."""
    learns = learning(model, spec)
    parameters = learns.learned
    bf16 = spec.precision != "fp32"
    accumulation = spec.batch.global_samples // world // micro_batch
    state = state_bytes(
        parameters,
        spec.optim,
        zero_stage=zero_stage,
        world=world,
        bf16=bf16,
        validates=spec.validation is not None,
        frozen=learns.frozen,
    )
    update = update_bytes(parameters, zero_stage=zero_stage, world=world)
    if spec.resources.offload_optimizer and spec.resources.gpus_per_worker:
        # What is updated is in the host's memory; without a GPU, that is the same memory.
        state, update = state._replace(master=0.0, moments=0.0, average=0.0), 0.0
    return MemoryBytes(
        state=state,
        activations=activation_bytes(
            model,
            spec.objective,
            samples=micro_batch,
            bf16=bf16,
            recompute=spec.resources.recompute,
            first_layer=learns.first_layer,
        ),
        backward=backward_bytes(
            learns.held if zero_stage == 3 else parameters,
            zero_stage=zero_stage,
            world=world,
            accumulation=accumulation,
            bf16=bf16,
        ),
        update=update,
    )
