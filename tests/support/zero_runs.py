"""Runs of DeepSpeedEngine in real processes over gloo, several stages in one start-up."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.model.adapters import add_lora
from pipeline.model.backbone import Backbone
from pipeline.model.building import compile_blocks
from pipeline.model.freezing import freeze
from pipeline.model.vit import Encoder
from pipeline.training.engine import Engine
from pipeline.training.schedule import learning_rate
from schemas.backbones import BackboneSpec
from schemas.checkpoint import LossScale, RunProgress
from schemas.optim import OptimSpec
from schemas.tuning import FreezeSpec, LoraSpec
from tests.support.training import (
    OPTIM,
    TINY,
    FakeLoader,
    Spoiled,
    engine_spec,
    keeper,
    mae_engine_parts,
    model,
)

STEPS = 50


@dataclass(frozen=True)
class ZeroRun:
    """One run of `STEPS` steps; with `checkpoints`, saved in the middle or gone on from there."""

    name: str
    stage: int
    accumulation: int = 1
    precision: str = "fp32"
    checkpoints: str | None = None
    spec: BackboneSpec = TINY
    optim: OptimSpec = OPTIM
    recompute: bool = False
    offload: bool = False
    compiled: bool = False
    mae: bool = False
    """Trains a masked autoencoder, not a classifier."""
    steps: int = STEPS
    seed: int = 0
    """Of images and initial weights."""
    factor: float = LossScale().factor
    """What the loss is multiplied by at first, in fp16."""
    spoiled: bool = False
    """Some losses and some gradients are not finite."""
    freeze: FreezeSpec | None = None
    lora: LoraSpec | None = None


@dataclass(frozen=True)
class Outcome:
    losses: dict[int, float]
    norms: dict[int, float]
    weights: dict[str, torch.Tensor]
    saved: dict[str, torch.Tensor]
    """What would be the model: averages, where the run keeps them."""
    found: dict[str, torch.Tensor]
    """The same at the start, after a load."""
    expected: dict[str, torch.Tensor]
    """Averages that torch makes of the weights after each step of this run, from its start."""
    updates: int

    @classmethod
    def read(cls, folder: Path, name: str) -> "Outcome":
        """What `write` wrote."""
        losses, norms, updates = json.loads((folder / f"{name}.json").read_text())
        parts: dict[str, dict[str, torch.Tensor]] = {
            part: {} for part in ("weights", "saved", "found", "expected")
        }
        for key, tensor in load_file(folder / f"{name}.safetensors").items():
            part, _, parameter = key.partition("/")
            parts[part][parameter] = tensor
        curves = ({int(step): value for step, value in it.items()} for it in (losses, norms))
        return cls(*curves, **parts, updates=updates)

    def write(self, folder: Path, name: str) -> None:
        """For the process that started this one."""
        parts = ("weights", "saved", "found", "expected")
        tensors = {f"{part}/{key}": it for part in parts for key, it in getattr(self, part).items()}
        save_file(tensors, folder / f"{name}.safetensors")
        said = json.dumps([self.losses, self.norms, self.updates])
        (folder / f"{name}.json").write_text(said)


def run_world(folder: Path, world_size: int, runs: list[ZeroRun]) -> dict[str, Outcome]:
    """Do all `runs` in one world of processes."""
    in_world(folder, world_size, _do_all, world_size, folder, runs)
    return {run.name: Outcome.read(folder, run.name) for run in runs}


def in_world(folder: Path, world_size: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(rank, *args)` in every process of a world over gloo, with one thread each.

    `folder` holds what they find each other by.
    """
    folder.mkdir(exist_ok=True)
    arguments = (world_size, folder, function, args)
    torch.multiprocessing.spawn(_join_world, arguments, nprocs=world_size)


def _join_world(
    rank: int, world_size: int, folder: Path, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    warnings.simplefilter("ignore")
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    function(rank, *args)
    torch.distributed.destroy_process_group()


def _do_all(rank: int, world_size: int, folder: Path, runs: list[ZeroRun]) -> None:
    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    for run in runs:
        micro = 16 // world_size // run.accumulation
        loader = FakeLoader(
            run.spec, rank=rank, world_size=world_size, micro_batch=micro, seed=run.seed
        )
        zero = ZeroSpec(run.stage, micro, run.accumulation, offload=run.offload)
        spec = engine_spec(run.spec, run.optim, run.precision)
        trained: Backbone | Encoder = narrowed(model(run.spec, seed=run.seed), run.freeze, run.lora)
        if run.mae:
            trained, spec = mae_engine_parts()
        if run.spoiled:
            spec = replace(spec, objective=Spoiled(spec.objective))
        trained.recomputes = run.recompute
        if run.compiled:
            compile_blocks(trained)
        engine = DeepSpeedEngine(trained, spec, zero)
        scale = LossScale(factor=run.factor)
        outcome = follow(
            engine, loader, run.checkpoints, run.optim, steps=run.steps, loss_scale=scale
        )
        if rank == 0:
            outcome.write(folder, run.name)


def narrowed(
    trained: Backbone, freezing: FreezeSpec | None = None, lora: LoraSpec | None = None
) -> Backbone:
    """With parts that do not learn."""
    if freezing is not None:
        freeze(trained, freezing)
    if lora is not None:
        add_lora(trained, lora, seed=7)
    return trained


def follow(
    engine: Engine,
    loader: FakeLoader,
    checkpoints: str | None,
    optim: OptimSpec = OPTIM,
    *,
    steps: int = STEPS,
    loss_scale: LossScale | None = None,
) -> Outcome:
    """The run of an engine, from the checkpoint if there is one."""
    keep = keeper(Path(checkpoints)) if checkpoints else None
    progress = keep.resume(engine) if keep else RunProgress(step=0)
    start = progress.step
    if engine.scales_loss and progress.loss_scale is None:
        progress = progress.revise(loss_scale=loss_scale or LossScale())
    losses, norms = {}, {}
    found = dict(engine.weights()) if start else {}
    averages = AveragedWeights(optim)
    stream = loader.batches(start)
    for step in range(start, steps):
        losses[step] = engine.forward_backward(next(stream), step=step, scale=progress.scale)
        norms[step] = engine.step(learning_rate(step, optim, STEPS))
        progress = progress.after_step(losses[step], norms[step])
        if keep and step + 1 == STEPS // 2 and start == 0:
            keep.save(engine, progress, waits=True)
        averages.take(engine)
    weights = {name: state.weight for name, state in engine.state()}
    saved = dict(engine.weights())
    return Outcome(losses, norms, weights, saved, found, averages.read(), engine.updates)


class AveragedWeights:
    """The averages that torch makes of an engine's weights."""

    def __init__(self, optim: OptimSpec) -> None:
        self.decay = optim.ema_decay
        self.shadow = torch.nn.ParameterDict()
        self.averaged: AveragedModel | None = None

    def take(self, engine: Engine) -> None:
        if self.decay is None:
            return
        for name, state in engine.state():
            self.shadow[name.replace(".", "/")] = state.weight
        if self.averaged is None:
            average = get_ema_multi_avg_fn(self.decay)
            self.averaged = AveragedModel(self.shadow, multi_avg_fn=average)
        self.averaged.update_parameters(self.shadow)

    def read(self) -> dict[str, torch.Tensor]:
        if self.averaged is None:
            return {}
        named = self.averaged.module.named_parameters()
        return {name.replace("/", "."): parameter.detach() for name, parameter in named}
