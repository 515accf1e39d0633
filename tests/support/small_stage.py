"""A small training stage as its processes get it, and what it leaves."""

from pathlib import Path

from infra.metric_segments import read_points
from jobs.stage_task import METRICS_FILE
from jobs.train_plan import TrainPlan
from schemas.artifacts import KeyRecord
from schemas.resources import WorkersRange
from schemas.runs import InputArtifact, StageRequest
from schemas.training import PretrainSpec

SPEC = PretrainSpec.parse(
    {
        "data": "corpus",
        "augment": {"crop": "shift", "flip": True},
        "model": {
            "width": 24,
            "depth": 2,
            "num_heads": 3,
            "mlp_dim": 40,
            "patch_px": 4,
            "image_px": 8,
        },
        "optim": {"peak_lr": 1e-3, "warmup_steps": 2},
        "batch": {"global_samples": 16},
        "duration": {"steps": 40},
        "checkpoint": {"every_steps": 10},
        "resources": {"workers": 2, "zero_stage": 2},
    }
)


def plan_in(folder: Path, corpus: Path, *, workers: int | WorkersRange = 2) -> TrainPlan:
    spec = SPEC.revise(resources=SPEC.resources.revise(workers=workers))
    record = KeyRecord(kind="pretrain", revision=1, fields={}, inputs={}, libraries={}, seed=3)
    data = InputArtifact(
        stage="corpus",
        kind="ingest",
        artifact="ingest-1",
        digest="d",
        path=str(corpus),
        split="train",
        metrics={},
    )
    request = StageRequest(
        experiment="tests",
        run="run",
        stage="pretrain",
        spec=spec.dump(),
        seed=3,
        key=record.key(),
        key_record=record,
        inputs={"data": data},
        store=str(folder),
        pause_path=str(folder / "pause"),
    )
    model = spec.model.to_vit(num_classes=3)
    for name in ("attempt", "progress"):
        (folder / name).mkdir(parents=True)
    return TrainPlan(request, spec, model, folder / "attempt", folder / "progress")


def losses_in(folder: Path) -> dict[int, float]:
    """The curve of a stage that ran below `folder`."""
    points, _ = read_points(folder / "progress" / METRICS_FILE, 0)
    return {point.step: point.value for point in points if point.key == "train/loss"}
