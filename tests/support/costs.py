"""What torch itself counts of a training step: FLOPs, and bytes saved for the backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from pipeline.model import build
from pipeline.model.backbone import Backbone
from pipeline.model.freezing import freeze
from pipeline.model.mae import build_mae
from pipeline.model.masked import build_masked
from pipeline.training.objectives.common import Objective
from pipeline.training.objectives.masked import Autoencoding, MaskedPatch
from pipeline.training.objectives.supervised import Supervised
from schemas.backbones import ResNetSpec
from schemas.model import ViTSpec
from schemas.objectives import AnyObjective, MaeSpec, MaskedPatchSpec, SupervisedSpec
from schemas.tuning import FreezeSpec
from tests.support.training import FakeLoader, setting

SUPERVISED = SupervisedSpec()


@dataclass(frozen=True)
class Case:
    """A model, what it is trained for, and how."""

    name: str
    model: ViTSpec | ResNetSpec
    objective: AnyObjective = SUPERVISED
    bf16: bool = False
    recompute: bool = False
    samples: int = 4
    freeze: FreezeSpec | None = None


@dataclass(frozen=True)
class Counted:
    """By torch, in one training step on the CPU."""

    parameters: int
    flops: int
    """Of all samples."""
    saved_bytes: int
    """At their peak: with recomputed blocks, the largest block's own besides what enters each."""


def count(case: Case) -> Counted:
    """Build the model, and take a step under torch's counters."""
    model, objective = _parts(case)
    if case.freeze is not None and isinstance(model, Backbone):
        freeze(model, case.freeze)
    loader = FakeLoader(_labelled(case.model), samples=case.samples, global_samples=case.samples)
    batch = next(loader.batches(0))[0]
    saved = _Saved(model)
    with FlopCounterMode(display=False, custom_mapping=_tiled_attention()) as counter:
        with saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.bf16):
            loss = objective(model, batch)
        loss.backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inside = saved.largest_block(model, case) if case.recompute else 0
    return Counted(parameters, counter.get_total_flops(), saved.total + inside)


def _tiled_attention() -> dict[Any, Any]:
    """The CPU's kernel, which torch's counter does not know, counted as the GPU's of its kind."""

    def forward(query: Any, key: Any, value: Any, *_others: Any, **_named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_others: Any, **_named: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    ops = torch.ops.aten
    return {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def _parts(case: Case) -> tuple[nn.Module, Objective]:
    spec, objective = case.model, case.objective
    model: Any
    if isinstance(objective, MaskedPatchSpec) and isinstance(spec, ViTSpec):
        model = build_masked(spec, seed=1)
        made: Objective = MaskedPatch(setting(spec), objective)
    elif isinstance(objective, MaeSpec) and isinstance(spec, ViTSpec):
        model = build_mae(spec, objective.decoder(spec), seed=1)
        made = Autoencoding(setting(spec), objective)
    else:
        model = build(spec, seed=1)
        made = Supervised(setting(spec), SupervisedSpec(), 0.0)
    model.recomputes = case.recompute
    return model.train(), made


def _labelled(spec: ViTSpec | ResNetSpec) -> ViTSpec | ResNetSpec:
    return spec if spec.num_classes else spec.revise(num_classes=2)


class _Saved(saved_tensors_hooks):
    """Sums up the storages that are saved inside the block, parameters and buffers left out."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*model.parameters(), *model.buffers())
        }
        self._found: dict[int, tuple[int, Tensor]] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            # The tensor is held, so that no other takes its place.
            self._found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    @property
    def total(self) -> int:
        return sum(size for size, _ in self._found.values())

    @staticmethod
    def largest_block(model: nn.Module, case: Case) -> int:
        """What the largest block keeps, run by itself, besides what enters it."""
        entered: list[tuple[nn.Module, tuple[Any, ...]]] = []
        parts = model.blocks if isinstance(case.model, ViTSpec) else _units(model)
        handles = [
            part.register_forward_pre_hook(lambda part, given: entered.append((part, given)))
            for part in parts
        ]
        objective = _parts(case)[1]
        loader = FakeLoader(
            _labelled(case.model), samples=case.samples, global_samples=case.samples
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.bf16):
            objective(model, next(loader.batches(0))[0])
        for handle in handles:
            handle.remove()
        return max(_inside(part, given, model, case) for part, given in entered)


def _units(model: nn.Module) -> list[nn.Module]:
    stages: Any = model.stages
    return [unit for stage in stages for unit in stage.children()]


def _inside(part: nn.Module, given: tuple[Any, ...], model: nn.Module, case: Case) -> int:
    tokens, *others = given
    tokens = tokens.detach().requires_grad_()
    saved = _Saved(model)
    saved._known.add(tokens.untyped_storage().data_ptr())
    with saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.bf16):
        part(tokens, *others)
    return saved.total
