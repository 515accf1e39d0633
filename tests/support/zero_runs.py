"""Runs of DeepSpeedEngine in real processes over gloo, several stages in one start-up."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.model.backbone import Backbone
from pipeline.model.vit import Encoder
from pipeline.training.engine import Engine
from pipeline.training.schedule import learning_rate
from schemas.backbones import BackboneSpec
from schemas.training import OptimSpec
from tests.support.training import (
    OPTIM,
    TINY,
    FakeLoader,
    engine_spec,
    keeper,
    mae_engine_parts,
    model,
)

STEPS = 20


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
    mae: bool = False
    """Trains a masked autoencoder, not a classifier."""


@dataclass(frozen=True)
class Outcome:
    losses: dict[int, float]
    norms: dict[int, float]
    weights: dict[str, torch.Tensor]


def run_world(folder: Path, world_size: int, runs: list[ZeroRun]) -> dict[str, Outcome]:
    """Do all `runs` in one world of processes."""
    in_world(folder, world_size, _do_all, world_size, folder, runs)
    return {run.name: _read(folder, run.name) for run in runs}


def in_world(folder: Path, world_size: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(rank, *args)` in every process of a world over gloo, with one thread each.

    `folder` holds what they find each other by.
    """
    folder.mkdir(exist_ok=True)
    arguments = (world_size, folder, function, args)
    torch.multiprocessing.spawn(_join_world, arguments, nprocs=world_size)


def _read(folder: Path, name: str) -> Outcome:
    said = json.loads((folder / f"{name}.json").read_text())
    losses, norms = ({int(k): v for k, v in part.items()} for part in said)
    return Outcome(losses, norms, load_file(folder / f"{name}.safetensors"))


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
        loader = FakeLoader(run.spec, rank=rank, world_size=world_size, micro_batch=micro)
        zero = ZeroSpec(stage=run.stage, micro_batch=micro, accumulation=run.accumulation)
        spec = engine_spec(run.spec, run.optim, run.precision)
        trained: Backbone | Encoder = model(run.spec)
        if run.mae:
            trained, spec = mae_engine_parts()
        trained.recomputes = run.recompute
        engine = DeepSpeedEngine(trained, spec, zero)
        losses, norms = follow(engine, loader, run.checkpoints)
        weights = {name: state.weight for name, state in engine.state()}
        if rank == 0:
            save_file(weights, folder / f"{run.name}.safetensors")
            (folder / f"{run.name}.json").write_text(json.dumps([losses, norms]))


def follow(
    engine: Engine, loader: FakeLoader, checkpoints: str | None
) -> tuple[dict[int, float], dict[int, float]]:
    """Losses and gradient norms by step, from the checkpoint if there is one."""
    keep = keeper(Path(checkpoints)) if checkpoints else None
    start = keep.resume(engine).step if keep else 0
    losses, norms = {}, {}
    stream = loader.batches(start)
    for step in range(start, STEPS):
        losses[step] = engine.forward_backward(next(stream), step=step)
        norms[step] = engine.step(learning_rate(step, OPTIM, STEPS))
        if keep and step + 1 == STEPS // 2 and start == 0:
            keep.save(engine, step + 1, losses[step], waits=True)
    return losses, norms
