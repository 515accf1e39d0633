"""Bytes of tensors that live in a process, and what an engine holds of them."""

import gc
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.cost.state import FP32_BYTES, StateBytes
from pipeline.training.engine import Engine, TorchEngine
from schemas.optim import OptimSpec
from tests.support.training import TINY as _TINY
from tests.support.training import FakeLoader, engine_spec, model

SPEC = _TINY.revise(width=48, num_heads=3, mlp_dim=96)
WORLD = 2
GROUPS = 2
"""Of parameters: with weight decay and without."""
_FEW_BYTES = 64


@dataclass(frozen=True)
class Held:
    """By an engine of its own, on rank 0."""

    after_update: int
    """State without gradients, but for stage 3, which keeps their place."""
    after_backward: int
    """And with those of a step of two micro-batches."""
    parameters: int
    tensors: int
    largest: int
    """Numbers of the largest tensor."""

    def without_gradients(self, stated: StateBytes, stage: int) -> float:
        """Bytes held after an update beyond what is stated for this ZeRO stage."""
        kept = stated.gradients if stage == 3 else 0
        return self.after_update - (stated.held - stated.gradients + kept)

    def with_gradients(self, stated: StateBytes) -> float:
        """The same after a backward pass."""
        return self.after_backward - stated.held

    def most_besides(self, stated: StateBytes, stage: int) -> int:
        """What the formula leaves out: padding, step counters, and a few numbers of DeepSpeed's."""
        copies = round(stated.held / (FP32_BYTES * self.parameters / WORLD)) if stage else 0
        numbers = 2 * WORLD * GROUPS if stage < 3 else WORLD * self.tensors
        return FP32_BYTES * (copies * numbers + self.tensors) + _FEW_BYTES

    def most_cut(self, stage: int) -> int:
        """Gradients of the tensors that a border cuts, one at each end of each group's part."""
        return 2 * GROUPS * FP32_BYTES * self.largest if stage in (1, 2) else 0


def held_alone(optim: OptimSpec) -> Held:
    """By the single-process engine."""
    others = _living()
    return _held(TorchEngine(model(SPEC), engine_spec(SPEC, optim)), others, world=1)


def held_in_world(folder: Path, optim: OptimSpec, stages: list[int]) -> dict[int, Held]:
    """By stage, in one world of two processes."""
    torch.multiprocessing.spawn(_rank, (folder, optim.dump(), stages), nprocs=WORLD)
    said = json.loads((folder / "held.json").read_text())
    return {int(stage): Held(**found) for stage, found in said.items()}


def _rank(rank: int, folder: Path, optim: dict[str, object], stages: list[int]) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_SIZE=str(WORLD), LOCAL_RANK=str(rank))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    found = {}
    for stage in stages:
        others = _living()
        spec = engine_spec(SPEC, OptimSpec.parse(optim))
        engine = DeepSpeedEngine(model(SPEC), spec, ZeroSpec(stage, 4, 2))
        found[stage] = vars(_held(engine, others, world=WORLD))
    if rank == 0:
        (folder / "held.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _held(engine: Engine, others: dict[int, Tensor], *, world: int) -> Held:
    sizes = [parameter.numel() for parameter in model(SPEC).parameters()]
    loader = FakeLoader(
        SPEC, rank=engine.rank, world_size=world, micro_batch=4, global_samples=8 * world
    )
    stream = loader.batches(0)
    engine.forward_backward(next(stream), step=0)
    engine.step(1e-3)
    updated = _new(others)
    engine.forward_backward(next(stream), step=1)
    return Held(updated, _new(others), sum(sizes), len(sizes), max(sizes))


def _new(others: dict[int, Tensor]) -> int:
    found = _living().items()
    return sum(it.untyped_storage().nbytes() for place, it in found if place not in others)


def _living() -> dict[int, Tensor]:
    """Place -> a tensor in it, of every storage; whoever holds them keeps the places taken."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are asked what they are
        tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    for tensor in tensors:
        for each in (tensor, tensor.grad if tensor.is_leaf else None):
            if each is not None:
                found[each.untyped_storage().data_ptr()] = each
    return found
