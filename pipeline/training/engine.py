"""What the loop needs of an engine, and the single-process reference that all others must equal."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipeline.model.backbone import Backbone, buffers
from pipeline.model.freezing import learned, to_training
from pipeline.training.checkpoint import (
    ParameterState,
    named_tensors,
    read_buffers,
    read_parameters,
)
from pipeline.training.objectives.common import LabelledBatch, Objective
from pipeline.training.optimizer import (
    AVERAGE,
    build_optimizer,
    forget,
    has_average,
    materialise,
    moment_names,
    rewrite_groups,
    state_names,
    update_averages,
    write_learning_rate,
)
from pipeline.training.precision import autocast
from schemas.errors import IntegrityError
from schemas.optim import OptimSpec

CLIP_EPS = 1e-6
"""Added to the norm before division, by torch and DeepSpeed alike."""


class Engine(Protocol):
    """A model with its optimizer on one world of processes; every rank makes the same calls."""

    name: str
    rank: int
    world_size: int
    updates: int
    """Optimizer updates done since it began, or began anew; a step whose gradients are not finite
    makes none."""
    scales_loss: bool
    """Whether its arithmetic has so few small numbers that the loss must be scaled."""

    def forward_backward(
        self, micro_batches: Sequence[LabelledBatch], *, step: int, scale: float = 1.0
    ) -> float:
        """Gradients of one optimizer step from this rank's share; all ranks call it.

        In the steps of a linear probe, those of the head alone; after the last of them the
        optimizer begins anew.

        Args:
            micro_batches: Equally large parts of this rank's share of the global batch.
            step: Optimizer steps done before; dropout is drawn by it.
            scale: The loss is multiplied by it before gradients are made, and `step` divides them
                by it again; a power of two, so that nothing is rounded.

        Returns:
            Mean loss over the global batch, equal on all ranks.
        """
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update with this rate, forget the gradients.

        Nothing is updated where the norm of the gradients is not finite: weights, moments, averages
        and `updates` are as before. A loss that is not finite makes such gradients.

        Returns:
            The norm before clipping; all ranks get the same.
        """
        ...

    def loss(self, batch: LabelledBatch) -> float:
        """Loss of a whole batch without gradients; all ranks give the same batch."""
        ...

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        """Every parameter in the model's order; all ranks must consume it to its end.

        Of one that is frozen, nothing is kept beside the weight.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """What the run would save as its model now, whole, in fp32 and on the CPU.

        The averages of the weights where the spec asks for them, else the weights. In the model's
        order; all ranks must consume it to its end.
        """
        ...

    def buffers(self) -> dict[str, Tensor]:
        """What the model keeps beside its parameters, such as running statistics, on the CPU."""
        ...

    def share(self) -> dict[str, Tensor]:
        """Copies on the CPU of this rank's share of the whole state; all ranks call it.

        Named as in a checkpoint. The ranks share the parameters out one by one, and rank 0 has the
        buffers; together they are everything, once.
        """
        ...

    def load(self, folder: Path, updates: int) -> None:
        """Take over the state of a checkpoint after so many updates, from any world."""
        ...

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 - a vote
        """Whether any rank says true."""
        ...

    def highest(self, number: int) -> int:
        """The largest number that any rank gives."""
        ...

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, each in float64."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """What every engine is made from, besides the model."""

    optim: OptimSpec
    objective: Objective
    precision: str
    """`fp32`, or `bf16` or `fp16`: autocast over fp32 master weights."""
    device: torch.device
    seed: int
    """Of the experiment."""

    @property
    def scales_loss(self) -> bool:
        """See `Engine`."""
        return self.precision == "fp16"


class TorchEngine:
    """One process, plain torch: the reference."""

    name = "torch"
    rank = 0
    world_size = 1

    def __init__(self, model: torch.nn.Module, spec: EngineSpec) -> None:
        """Own `model` from here on, on `spec.device`."""
        self.model = model.to(spec.device)
        self.spec = spec
        self.scales_loss = spec.scales_loss
        self.updates = 0
        self._scale = 1.0
        self._start()

    def _start(self) -> None:
        self.optimizer = build_optimizer(self.model, self.spec.optim)
        for parameter in learned(self.model):
            materialise(self.optimizer.state[parameter], parameter, self.spec.optim)

    def forward_backward(
        self, micro_batches: Sequence[LabelledBatch], *, step: int, scale: float = 1.0
    ) -> float:
        """See `Engine`."""
        self._scale = scale
        if begin_step(self.model, self.optimizer, self.spec.optim, step):
            self.updates = 0
        total = torch.zeros((), device=self.spec.device)
        for index, batch in enumerate(micro_batches):
            seed_dropout(self.spec.seed, step=step, micro_step=index, rank=self.rank)
            loss = self._loss(batch) / len(micro_batches)
            (with_honest_gradients(loss) * scale).backward()  # type: ignore[no-untyped-call]  # torch's gap
            total += loss.detach()
        return float(total)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        norm = clip_gradients(self.model, self.spec.optim.clip_norm, scale=self._scale)
        if math.isfinite(norm):
            write_learning_rate(self.optimizer, learning_rate, head_alone=probes(self.model))
            self.optimizer.step()
            parameters = learned(self.model)
            update_averages(self.optimizer, parameters, self.spec.optim, done=self.updates)
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def loss(self, batch: LabelledBatch) -> float:
        """See `Engine`."""
        self.model.eval()
        with torch.no_grad():
            return float(self._loss(batch))

    def _loss(self, batch: LabelledBatch) -> Tensor:
        with autocast(self.spec.precision, self.spec.device):
            return self.spec.objective(self.model, batch)

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        """See `Engine`."""
        keys = moment_names(self.spec.optim)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                yield name, ParameterState(to_cpu(parameter), ())
                continue
            kept = self.optimizer.state[parameter]
            moments = tuple(to_cpu(kept[key]) for key in keys)
            average = to_cpu(kept[AVERAGE]) if AVERAGE in kept else None
            yield name, ParameterState(to_cpu(parameter), moments, average)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`."""
        averaged = has_average(self.spec.optim, self.updates)
        for name, parameter in self.model.named_parameters():
            moves = averaged and parameter.requires_grad
            yield name, to_cpu(self.optimizer.state[parameter][AVERAGE] if moves else parameter)

    def buffers(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return buffers_of(self.model)

    def share(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return named_tensors(self.state(), buffers=self.buffers())

    def load(self, folder: Path, updates: int) -> None:
        """See `Engine`."""
        found = load_weights(self.model, folder)
        keys = state_names(self.spec.optim)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            kept = self.optimizer.state[parameter]
            for key, tensor in zip(keys, found[name], strict=True):
                kept[key].copy_(tensor)
            if "step" in kept:
                kept["step"].fill_(updates)
        self.updates = updates
        rewrite_groups(self.optimizer, self.spec.optim)

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 - a vote
        """See `Engine`."""
        return flag

    def highest(self, number: int) -> int:
        """See `Engine`."""
        return number

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """See `Engine`."""
        return list(numbers)


def begin_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, optim: OptimSpec, step: int
) -> bool:
    """Training mode; the head alone in a linear probe, and all forgotten when one is over.

    Returns:
        Whether the optimizer begins anew.
    """
    to_training(model)
    if isinstance(model, Backbone):
        model.probes = step < optim.linear_probe_steps
    begins_anew = 0 < optim.linear_probe_steps == step
    if begins_anew:
        forget(optimizer)
    return begins_anew


def probes(model: torch.nn.Module) -> bool:
    """Whether this step is one of a linear probe."""
    return isinstance(model, Backbone) and model.probes


def clip_gradients(model: torch.nn.Module, clip_norm: float | None, *, scale: float = 1.0) -> float:
    """Scale all gradients so that their global norm is at most `clip_norm`; the norm before.

    First they are divided by `scale`, that of the loss which they come from.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if scale != 1.0:
        for gradient in gradients:
            gradient.div_(scale)
    norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
    if clip_norm is not None:
        shrink = torch.clamp(clip_norm / (norm + CLIP_EPS), max=1.0)
        for gradient in gradients:
            gradient.mul_(shrink)
    return float(norm)


def with_honest_gradients(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, all its gradients are NaN, although some would be finite.

    So that whoever looks at the gradients alone, as DeepSpeed does, sees it too.
    """
    return loss * (1.0 + (loss - loss).detach())


def seed_dropout(seed: int, *, step: int, micro_step: int, rank: int) -> None:
    """Begin torch's own generators anew, so that dropout draws the same after a resume.

    Nothing else in training draws from them.
    """
    text = f"dropout/{seed}/{step}/{micro_step}/{rank}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def load_weights(model: torch.nn.Module, folder: Path) -> dict[str, tuple[Tensor, ...]]:
    """Copy the weights and buffers of a checkpoint into a bare model.

    Returns:
        What the optimizer keeps for each parameter, by its name; see `ParameterState.kept`.

    Raises:
        IntegrityError: If the checkpoint's parameters or buffers are not those of the model.
    """
    own = dict(model.named_parameters())
    others = {}
    with torch.no_grad():
        for name, state in read_parameters(folder):
            if name not in own or own[name].shape != state.weight.shape:
                raise IntegrityError(f"checkpoint {folder} has {name}, which the model has not")
            own[name].copy_(state.weight)
            others[name] = state.kept
    kept, found = buffers(model), read_buffers(folder)
    missing = sorted({*own, *kept} - {*others, *found})
    if missing:
        raise IntegrityError(f"checkpoint {folder} lacks {', '.join(missing)}")
    for name, tensor in kept.items():
        tensor.copy_(found[name])
    return others


def buffers_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Independent copies of a model's buffers on the CPU, each of its own kind of numbers."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in buffers(model).items()
    }


def to_cpu(tensor: Tensor) -> Tensor:
    """An independent contiguous fp32 copy on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
