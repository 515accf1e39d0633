"""kill -9 of a training process: the gang starts again and ends with the very same weights."""

import signal
from pathlib import Path
from typing import Any

import psutil
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


def train_in(folder: Path, corpus: Path, mark: Path, number: int) -> list[str]:
    """Train below `folder`; rank 1 gets signal `number` unless the mark stands. Returns the log."""
    plan = plan_in(folder, corpus)
    gang = Gang(
        worlds=(2,),
        cpus_per_worker=0.5,
        gpus_per_worker=0,
        name=folder.name,
        storage=plan.progress / "ray",
        env=worker_environment(SPEC.resources),
    )
    config = {"plan": plan, "mark": str(mark), "after": "step-00000010", "signal": number}
    said: list[str] = []
    run_gang(work.train_and_die_once, config, gang, Foreman(said.append, stop=lambda: False))
    return said


def model_in(folder: Path) -> bytes:
    return (folder / "attempt" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and `undisturbed/`, a run on it in which nobody dies."""
    folder = tmp_path_factory.mktemp("killed")
    small_set(folder, per_class=12)
    (folder / "out").rename(folder / DATASET_FOLDER)
    (folder / "mark").touch()
    assert train_in(folder / "undisturbed", folder, folder / "mark", signal.SIGKILL) == []
    return folder


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        # A process that is there and says nothing is waited for, before it counts as lost.
        pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_changes_nothing_in_the_final_weights_and_leaves_nothing_behind(
    number: int, undisturbed: Path, tmp_path: Path
) -> None:
    said = train_in(tmp_path / "lost", undisturbed, tmp_path / "mark", number)
    assert len(said) == 1, "one gang was lost"
    assert "goes on from step" in (tmp_path / "lost" / "log.txt").read_text()
    assert model_in(tmp_path / "lost") == model_in(undisturbed / "undisturbed")
    assert not psutil.pid_exists(int((tmp_path / "mark").read_text()))
