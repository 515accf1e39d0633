"""kill -9 of a training process: the gang starts again and ends with the very same weights."""

from pathlib import Path
from typing import Any

import pytest

from infra.worker_gang import Foreman, Gang, run_gang
from jobs.train import worker_environment
from jobs.train_worker import TrainPlan
from schemas.artifacts import KeyRecord
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact, StageRequest
from schemas.training import PretrainSpec
from tests.support import gang as work
from tests.support.datasets import small_set

pytestmark = pytest.mark.ray

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


def plan_in(folder: Path, corpus: Path) -> TrainPlan:
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
        spec=SPEC.dump(),
        seed=3,
        key=record.key(),
        key_record=record,
        inputs={"data": data},
        store=str(folder),
        pause_path=str(folder / "pause"),
    )
    model = SPEC.model.to_vit(num_classes=3)
    for name in ("attempt", "progress"):
        (folder / name).mkdir(parents=True)
    return TrainPlan(request, SPEC, model, folder / "attempt", folder / "progress")


def test_a_killed_worker_changes_nothing_in_the_final_weights(
    ray_session: Any, tmp_path: Path
) -> None:
    small_set(tmp_path, per_class=12)
    (tmp_path / "out").rename(tmp_path / DATASET_FOLDER)
    models, said = [], []
    for name in ("undisturbed", "killed"):
        plan = plan_in(tmp_path / name, tmp_path)
        gang = Gang(
            worlds=(2,),
            cpus_per_worker=0.5,
            gpus_per_worker=0,
            name=name,
            storage=plan.progress / "ray",
            env=worker_environment(SPEC.resources),
        )
        mark = tmp_path / "mark"
        if name == "undisturbed":
            mark.touch()  # nobody dies where the mark stands
        else:
            mark.unlink()
        config = {"plan": plan, "mark": str(mark), "after": "step-00000010"}
        foreman = Foreman(say=said.append, stop=lambda: False)
        run_gang(work.train_and_die_once, config, gang, foreman)
        models.append((plan.attempt / "model" / "model.safetensors").read_bytes())
    assert len(said) == 1, "one gang was lost"
    log = (tmp_path / "killed" / "log.txt").read_text()
    assert "goes on from step" in log
    assert models[0] == models[1]
