"""kill -9 of a training process: the gang starts again and ends with the very same weights."""

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.worker_gang import Foreman, Gang, run_gang
from jobs.train import worker_environment
from schemas.manifest import DATASET_FOLDER
from tests.support import gang as work
from tests.support.datasets import small_set
from tests.support.small_stage import SPEC, plan_in

pytestmark = pytest.mark.ray


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
