"""Our training loop as a stage runs it, in a process of a benchmark."""

import tempfile
from pathlib import Path

import torch

from infra.metric_segments import SegmentLog
from infra.pace_file import PaceFile, pace_path
from jobs.stage_task import PauseFile
from pipeline.training.engine import Engine, EngineSpec
from pipeline.training.loop import Watch, train
from pipeline.training.objectives.common import Setting
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.teller import Batches
from schemas.model import ViTSpec
from schemas.objectives import SupervisedSpec
from schemas.optim import OptimSpec

OPTIM = OptimSpec(peak_lr=1e-4, weight_decay=0.05, clip_norm=1.0, warmup_steps=0)


def supervised_spec(model: ViTSpec, *, seed: int, device: str = "cpu") -> EngineSpec:
    """What our engines are made from, for labels."""
    setting = Setting(model, seed, torch.device(device))
    precision = "fp32" if device == "cpu" else "bf16"
    objective = Supervised(setting, SupervisedSpec(), 0.0)
    return EngineSpec(OPTIM, objective, precision, setting.device, seed)


def run_loop(engine: Engine, loader: Batches, total_steps: int) -> None:
    """Train with all that watches a real stage, without checkpoints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        watch = Watch(
            metrics=SegmentLog(folder / "metrics.jsonl"),
            stop=PauseFile(folder / "pause"),
            pace=PaceFile(pace_path(folder, "stage")),
        )
        train(engine, loader, optim=OPTIM, total_steps=total_steps, keeper=None, watch=watch)
