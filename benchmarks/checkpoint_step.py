"""[checkpoint_step] The slowest step with a checkpoint beside the median step.

ViT-Ti/16 at 224 px, 8 samples, by our loop, with the plain engine and with ZeRO-1 to 3 on two ranks
of one thread each. A step lasts from one batch being asked for to the next: copying the state, the
probe batch, and whatever the writing thread takes away from training count.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.figure import Figure, arguments, conclude, conditions
from pipeline.training.engine import Engine, TorchEngine
from pipeline.training.keeper import CheckpointKeeper, RunIdentity
from pipeline.training.loop import Watch, train
from schemas.model import ModelSpec
from schemas.resources import CheckpointSpec
from tests.support.training import KEY, OPTIM, FakeBatch, FakeLoader, engine_spec, model
from tests.support.zero_runs import in_world

_SPEC = ModelSpec(variant="Ti", patch_px=16, image_px=224).to_vit(num_classes=1000)
_SAMPLES = 8
_CHECKPOINTS = 4
_EVERY = 6
_FIRST = 2
"""Steps that warm up and do not count."""
_GOAL = 2.0


def main() -> int:
    """Time every step of a run of each engine."""
    options = arguments(__doc__, trials=_CHECKPOINTS)
    with tempfile.TemporaryDirectory() as folder:
        ratios = {}
        for stage in (None, 1, 2, 3):
            name = "torch" if stage is None else f"zero{stage}"
            root = Path(folder) / name
            root.mkdir()
            in_world(root, 1 if stage is None else 2, _run, stage, options.trials, root)
            ratios[name] = _ratios([float(line) for line in (root / "steps").read_text().split()])
    worst = max(slowest for _, slowest in ratios.values())
    return conclude(
        Figure(
            name="checkpoint_step",
            figure=round(worst, 3),
            unit="time of the slowest step with a checkpoint over the median step's, worst engine",
            goal=f"at most {_GOAL}",
            holds=worst <= _GOAL,
            conditions=conditions(
                seed=options.seed, checkpoints=options.trials, every_steps=_EVERY, samples=_SAMPLES
            ),
            details={
                name: {"median_seconds": round(median, 4), "slowest_ratio": round(slowest, 3)}
                for name, (median, slowest) in ratios.items()
            },
        )
    )


def _ratios(seconds: list[float]) -> tuple[float, float]:
    """Median step, and the slowest with a checkpoint over it."""
    counted = dict(enumerate(seconds, start=1))
    for step in range(1, _FIRST + 1):
        del counted[step]
    median = statistics.median(counted.values())
    # The writing thread goes on beside the step after: that one counts as one with a checkpoint.
    slow = [value for step, value in counted.items() if step % _EVERY in {0, 1}]
    return median, max(slow) / median


def _run(rank: int, stage: int | None, checkpoints: int, root: Path) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)) if stage is None else 1)
    loader = _Timed(rank, 1 if stage is None else 2)
    total = _EVERY * checkpoints + 2
    train(
        _engine(stage),
        loader,
        optim=OPTIM,
        total_steps=total,
        keeper=CheckpointKeeper(
            root / "checkpoints",
            identity=RunIdentity(
                key=KEY, data_digest="d", global_samples=16, model=_SPEC, versions={}
            ),
            when=CheckpointSpec(every_steps=_EVERY),
            probe=loader.loader.rows(np.arange(4)),
            say=lambda _line: None,
        ),
        watch=Watch(),
    )
    if rank == 0:
        (root / "steps").write_text("\n".join(str(step) for step in np.diff(loader.asked)))


def _engine(stage: int | None) -> Engine:
    trained, spec = model(_SPEC), engine_spec(_SPEC)
    if stage is None:
        return TorchEngine(trained, spec)
    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    return DeepSpeedEngine(trained, spec, ZeroSpec(stage, _SAMPLES // 2, accumulation=1))


class _Timed:
    """A loader that notes when each batch is asked for."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.loader = FakeLoader(
            _SPEC, samples=16, global_samples=_SAMPLES, rank=rank, world_size=world_size
        )
        self.asked: list[float] = []

    def batches(self, start_step: int) -> Iterator[tuple[FakeBatch, ...]]:
        for batch in self.loader.batches(start_step):
            self.asked.append(time.perf_counter())
            yield batch

    def figures(self) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    sys.exit(main())
