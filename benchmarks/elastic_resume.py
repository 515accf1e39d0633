"""[elastic_resume] Checkpoints from which another world size, or another ZeRO stage, goes on.

Real training of a small ViT with augmentation, mixup, drop-path and averaged weights, at a global
batch of 12, over gloo: 2 -> 1, 1 -> 2 and 2 -> 3 processes in each of ZeRO-1, 2 and 3, and with two
processes stage 1 -> 3, 3 -> 1 and 2 -> 0. Each goes on for 20 steps from a checkpoint of a run that
went on undisturbed, and is compared with it: losses; learning rate and weight decay of every
parameter group at every step; and which images made up every batch.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, arguments, conclude, conditions
from infra.metric_segments import read_points
from jobs import ingest
from jobs.stage import StageOutput, StageTools
from jobs.stage_task import METRICS_FILE
from jobs.train_plan import TrainPlan, trained_model
from jobs.train_worker import CHECKPOINTS, engine_spec, prepare_torch, run_plan
from pipeline.data.shards.shard_set import ShardSet
from pipeline.training.checkpoint import step_folder
from schemas.data import IngestSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact, StageRequest
from schemas.training import PretrainSpec
from tests.support.stages import run_stage
from tests.support.zero_runs import in_world

_SAMPLES, _MIDDLE, _STEPS = 12, 20, 40
_TOLERANCE = 1e-5
_WORLDS = ((2, 1), (1, 2), (2, 3))
_STAGES = ((1, 3), (3, 1), (2, 0))
_KEY = "e" * 64


@dataclass(frozen=True)
class Crossing:
    """Who writes a checkpoint and who goes on from it: processes and ZeRO stage."""

    writer: tuple[int, int]
    reader: tuple[int, int]

    @property
    def name(self) -> str:
        """As the document says it."""
        return "{}x zero{} -> {}x zero{}".format(*self.writer, *self.reader)


def main() -> int:
    """Train, go on elsewhere, compare."""
    options = arguments(__doc__)
    crossings = [
        Crossing((before, stage), (after, stage))
        for before, after in _WORLDS
        for stage in (1, 2, 3)
    ] + [Crossing((2, before), (2, after)) for before, after in _STAGES]
    compared: list[dict[str, Any]] = []
    for trial in range(options.trials):
        with tempfile.TemporaryDirectory() as folder:
            runs = _Runs(Path(folder), options.corpus, seed=options.seed + trial)
            compared += [
                {"crossing": each.name, **runs.compare(each)} for each in runs.do(crossings)
            ]
    worst = max(each["loss_difference"] for each in compared)
    same = all(each["same_groups"] and each["same_samples"] for each in compared)
    return conclude(
        Figure(
            name="elastic_resume",
            figure=worst,
            unit="largest difference of a loss in the 20 steps after a resume elsewhere",
            goal="at most 1e-5; groups' learning rates and weight decays and all samples identical",
            holds=worst <= _TOLERANCE and same and len(compared) == options.trials * len(crossings),
            conditions=conditions(
                seed=options.seed, trials=options.trials, global_samples=_SAMPLES, precision="fp32"
            ),
            details={"crossings": compared},
        )
    )


def _corpus(folder: Path, images: Path | None) -> InputArtifact:
    source = (
        {"type": "image_folder", "uri": str(images)}
        if images
        else {"type": "sklearn", "name": "digits"}
    )
    spec = IngestSpec.parse({"source": source, "image": {"max_side_px": 32, "encoding": "png"}})
    return run_stage(ingest.run, spec, folder).at("train")


def _spec() -> PretrainSpec:
    return PretrainSpec.parse(
        {
            "data": "corpus",
            "augment": {"crop": "inception", "flip": True, "mixup_alpha": 0.2},
            "model": {"width": 36, "depth": 2, "num_heads": 3, "mlp_dim": 72, "patch_px": 4,
                      "image_px": 16, "drop_path": 0.2},
            "optim": {"peak_lr": 1e-3, "warmup_steps": 5, "weight_decay": 0.1, "ema_decay": 0.9},
            "batch": {"global_samples": _SAMPLES},
            "duration": {"steps": _STEPS},
            "checkpoint": {"every_steps": _MIDDLE, "keep_last": 3},
            "resources": {"workers": {"min": 1, "max": 3}},
        }
    )  # fmt: skip


class _Runs:
    """Runs on one corpus, each in a folder of its own."""

    def __init__(self, folder: Path, images: Path | None, *, seed: int) -> None:
        self.folder = folder
        self.data = _corpus(folder / "corpus", images)
        self.seed = seed

    def do(self, crossings: Sequence[Crossing]) -> Sequence[Crossing]:
        """All of them, few worlds of processes: each takes seconds to start."""
        for size in sorted({each.writer[0] for each in crossings}):
            writers = {each.writer for each in crossings if each.writer[0] == size}
            self._in_world(size, [(stage, self._plan(f"{size}-{stage}")) for _, stage in writers])
        for size in sorted({each.reader[0] for each in crossings}):
            readers = [each for each in crossings if each.reader[0] == size]
            self._in_world(size, [(each.reader[1], self._resumed(each)) for each in readers])
        return crossings

    def _in_world(self, size: int, work: list[tuple[int, TrainPlan]]) -> None:
        with tempfile.TemporaryDirectory() as meeting:
            in_world(Path(meeting) / "world", size, _train_all, work)

    def _plan(self, name: str) -> TrainPlan:
        made: list[TrainPlan] = []

        def take(request: StageRequest, tools: StageTools) -> StageOutput:
            request = request.revise(key=_KEY)  # of all runs, as it is in a pipeline
            model = _spec().model.resolved(num_classes=self._classes())
            attempt = tools.attempt
            made.append(TrainPlan(request, _spec(), model, attempt.path, attempt.progress))
            return StageOutput()

        run_stage(take, _spec(), self.folder / name, inputs={"data": self.data}, seed=self.seed)
        return made[0]

    def _classes(self) -> int:
        return len(ShardSet.open(Path(self.data.path) / DATASET_FOLDER).manifest.class_names)

    def _resumed(self, crossing: Crossing) -> TrainPlan:
        plan = self._plan(crossing.name.replace(" ", "_"))
        writer = self.folder / "{}-{}".format(*crossing.writer) / "progress"
        middle = Path(CHECKPOINTS) / step_folder(_MIDDLE)
        shutil.copytree(writer / middle, plan.progress / middle)
        return plan

    def compare(self, crossing: Crossing) -> dict[str, Any]:
        """What the two did after the checkpoint."""
        writer = self.folder / "{}-{}".format(*crossing.writer)
        reader = self.folder / crossing.name.replace(" ", "_")
        before, after = (_curve(each / "progress" / METRICS_FILE) for each in (writer, reader))
        assert sorted(after) == list(range(_MIDDLE + 1, _STEPS + 1)), "it goes on from the middle"
        worlds = (crossing.writer[0], crossing.reader[0])
        notes = [_notes(each, size) for each, size in zip((writer, reader), worlds, strict=True)]
        return {
            "loss_difference": max(abs(after[step] - before[step]) for step in after),
            "same_groups": notes[0]["groups"][_MIDDLE:] == notes[1]["groups"],
            "same_samples": notes[0]["samples"][_MIDDLE:] == notes[1]["samples"],
        }


def _curve(path: Path) -> dict[int, float]:
    return {p.step: p.value for p in read_points(path, 0)[0] if p.key == "train/loss"}


def _notes(folder: Path, size: int) -> dict[str, list[Any]]:
    """Groups and samples by step; samples of all ranks, in their order."""
    ranks = [json.loads((folder / f"notes-{rank}.json").read_text()) for rank in range(size)]
    steps = zip(*(each["samples"] for each in ranks), strict=True)
    return {"groups": ranks[0]["groups"], "samples": [list(chain(*each)) for each in steps]}


def _train_all(rank: int, work: list[tuple[int, TrainPlan]]) -> None:
    """One process: train each plan at its ZeRO stage."""
    import torch

    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    class Noting(DeepSpeedEngine):
        """Writes down what every step is made of."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.groups: list[list[tuple[float, float]]] = []
            self.samples: list[list[list[int]]] = []

        def forward_backward(
            self, micro_batches: Sequence[Any], *, step: int, scale: float = 1.0
        ) -> float:
            places = [each.places for each in micro_batches]
            self.samples.append(
                [
                    [int(epoch), int(position)]
                    for each in places
                    for epoch, position in zip(each.epoch, each.position, strict=True)
                ]
            )
            return super().forward_backward(micro_batches, step=step, scale=scale)

        def step(self, learning_rate: float) -> float:
            norm = super().step(learning_rate)
            groups = self._torch_optimizer(self._engine).param_groups
            self.groups.append([(each["lr"], each["weight_decay"]) for each in groups])
            return norm

    for stage, plan in work:
        prepare_torch(1)
        world = torch.distributed.get_world_size()
        zero = ZeroSpec(stage=stage, micro_batch=plan.micro_batch(world), accumulation=1)
        setup = engine_spec(plan, torch.device("cpu"))
        engine = Noting(trained_model(plan), setup, zero)
        run_plan(plan, setup, iter([engine]).__next__)  # nothing takes the run back
        notes = {"groups": engine.groups, "samples": engine.samples}
        (plan.attempt.parent / f"notes-{rank}.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    sys.exit(main())
