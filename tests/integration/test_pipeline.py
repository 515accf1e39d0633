"""The whole DAG by the command line, on the session's cluster, in real processes."""

import json
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.storage import LocalStore
from schemas.evaluation import AccuracyReport
from schemas.runs import PlanDocument, RunDocument
from tests.conftest import RaySession
from tests.support.commands import Finished, interrupted, sets, vitrail
from tests.support.corpora import write_folder

pytestmark = [
    pytest.mark.ray,
    # MLflow's own use of its libraries.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

NOBODY = "127.0.0.1:1"
"""An address at which no Ray can be."""


@dataclass(frozen=True)
class Made:
    """A workspace in which the tiny digits DAG has run once."""

    folder: Path
    first: Finished

    @property
    def document(self) -> RunDocument:
        return RunDocument.model_validate_json(self.first.stdout)

    def artifact(self, stage: str) -> Path:
        found = next(item for item in self.document.stages if item.name == stage)
        store = LocalStore(self.folder / ".vitrail" / "store")
        result = store.lookup(found.kind, found.key or "")
        assert result is not None
        return store.path(result)


@pytest.fixture(scope="module")
def made(ray_cluster: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pipeline")
    words = ("run", "digits", "--address", ray_cluster.address, "--output", "json", *sets())
    return Made(folder, vitrail(*words, cwd=folder))


def test_the_whole_dag_runs(made: Made) -> None:
    assert made.first.code == 0, made.first.stderr
    assert {stage.status for stage in made.document.stages} == {"ran"}
    assert len(made.document.stages) == 10
    assert made.document.report is not None
    assert "Handwritten digits" in Path(made.document.report).read_text()


def test_every_test_image_is_counted_for_every_method(made: Made) -> None:
    reports = [
        AccuracyReport.model_validate_json((made.artifact(stage) / "accuracy.json").read_bytes())
        for stage in ("accuracy", "accuracy-scratch", "pixels")
    ]
    accuracies = [found for report in reports for found in report.accuracies]
    assert len(accuracies) == 4
    assert len({found.total for found in accuracies}) == 1
    assert all(found.low_ratio <= found.top1_ratio <= found.high_ratio for found in accuracies)


def test_a_second_run_reuses_everything_and_needs_no_ray(made: Made) -> None:
    words = ("run", "digits", "--address", NOBODY, "--output", "json", *sets())
    again = vitrail(*words, cwd=made.folder)
    assert again.code == 0, again.stderr
    assert {stage["status"] for stage in again.document["stages"]} == {"reused"}
    assert len(list((made.folder / ".vitrail" / "runs").iterdir())) == 1


def test_a_plan_names_the_first_changed_stage_and_its_field(made: Made) -> None:
    words = ("plan", "digits", "--output", "json", "--detailed-exitcode", *sets())
    planned = vitrail(*words, "--set", "transfer.optim.peak_lr=2e-3", cwd=made.folder)
    assert planned.code == 10, planned.stderr
    stages = {it.stage: it for it in PlanDocument.model_validate_json(planned.stdout).stages}
    assert stages["transfer"].action == "run"
    assert [change.field for change in stages["transfer"].changes] == ["optim.peak_lr"]
    pending = {name for name, it in stages.items() if it.action == "pending"}
    assert pending == {"accuracy", "report"}
    assert {it.action for it in stages.values() if it.stage not in {*pending, "transfer"}} == {
        "reuse"
    }


def test_explain_tells_field_by_field(made: Made) -> None:
    words = ("explain", "digits", "transfer", *sets(), "--set", "transfer.optim.peak_lr=2e-3")
    told = vitrail(*words, cwd=made.folder)
    assert told.code == 0
    assert "optim.peak_lr" in told.stdout
    assert "0.003" in told.stdout
    assert "0.002" in told.stdout


def test_mlflow_mirrors_the_run(made: Made) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{made.folder / '.vitrail' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["vitrail.stage"]: run for run in runs if run not in parents}
    assert len(parents) == 1
    assert set(children) == {stage.name for stage in made.document.stages}
    assert {run.info.status for run in runs} == {"FINISHED"}
    transfer = children["transfer"]
    assert transfer.data.params["optim.peak_lr"] == "0.003"
    history = client.get_metric_history(transfer.info.run_id, "train/loss")
    assert [point.step for point in history] == sorted({point.step for point in history})
    assert len(history) == 4
    assert [it.dataset.name for it in transfer.inputs.dataset_inputs] == ["downstream"]
    assert client.get_model_version_by_alias("digits", "candidate").run_id == transfer.info.run_id
    report = {file.path for file in client.list_artifacts(children["report"].info.run_id)}
    assert {"report.html", "report.md", "report.json"} <= report


def test_a_submitted_run_makes_the_same_bytes(
    made: Made, ray_cluster: RaySession, tmp_path: Path
) -> None:
    submitted = vitrail("submit", "digits", "--address", ray_cluster.jobs_server, *sets(),
                        cwd=tmp_path)  # fmt: skip
    assert submitted.code == 0, submitted.stdout + submitted.stderr
    run = next((tmp_path / ".vitrail" / "runs").iterdir()).name
    status = vitrail("status", run, "--output", "json", cwd=tmp_path)
    assert status.document["status"] == "finished"
    store = LocalStore(tmp_path / ".vitrail" / "store")
    local = LocalStore(made.folder / ".vitrail" / "store")
    for stage in made.document.stages:
        mine = store.lookup(stage.kind, stage.key or "")
        theirs = local.lookup(stage.kind, stage.key or "")
        assert mine is not None, f"{stage.name} has another key when submitted"
        assert theirs is not None
        # A report tells how long the stages took, each time anew.
        assert mine.digest == theirs.digest or stage.kind == "report", stage.name
    assert "upstream: ran" in vitrail("logs", run, cwd=tmp_path).stdout


def test_a_repeated_submit_adopts_the_running_job_and_cancel_stops_it(
    ray_cluster: RaySession, tmp_path: Path
) -> None:
    words = ("submit", "digits", "--address", ray_cluster.jobs_server, "--detach",
             *sets(), "--set", "pretrain.duration={steps: 100000}")  # fmt: skip
    first = vitrail(*words, cwd=tmp_path)
    assert first.code == 0, first.stderr
    run = first.stdout.strip()
    second = vitrail(*words, cwd=tmp_path)
    assert second.stdout.strip() == run
    assert "adopted" in second.stderr
    stopped = vitrail("cancel", run, cwd=tmp_path)
    assert stopped.code == 0, stopped.stderr
    assert vitrail("status", run, cwd=tmp_path).stdout.startswith(f"{run}: ")
    assert vitrail("cancel", run, cwd=tmp_path).code == 2


def test_ctrl_c_pauses_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = ("run", "digits", "--until", "pretrain", *sets())
    steps = ("--set", "pretrain.duration={steps: 400}")
    # What `cancel` sends; Ray puts a handler of its own in place when it starts.
    terminated = (signal.SIGTERM,)
    paused, left = interrupted(
        *words, *steps, cwd=tmp_path, when="pretrain: step", signals=terminated
    )
    assert paused.code == 75, paused.stderr
    assert "Traceback" not in paused.stderr
    assert not left
    assert "go on with: vitrail run digits" in paused.stderr
    again = vitrail(*words, *steps, cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert "goes on" in again.stderr
    assert "upstream: ran" not in again.stderr


def test_a_stop_while_ray_starts_is_a_pause(tmp_path: Path) -> None:
    words = ("run", "digits", "--until", "upstream")
    paused, left = interrupted(*words, cwd=tmp_path, when="run 2", signals=(signal.SIGTERM,))
    assert paused.code == 75, paused.stderr
    assert not left


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    words = ("run", "digits", "--until", "upstream")
    twice = (signal.SIGINT, signal.SIGINT)
    killed, left = interrupted(*words, cwd=tmp_path, when="upstream: listing", signals=twice)
    assert killed.code == 130, killed.stderr
    assert not left
    assert vitrail(*words, cwd=tmp_path).code == 0


def test_a_stage_that_fails_takes_only_its_dependants_along(
    ray_cluster: RaySession, tmp_path: Path
) -> None:
    good = write_folder(tmp_path / "good", per_class=6)
    bad = tmp_path / "bad"
    for name in ("cat", "dog"):
        (bad / name).mkdir(parents=True)
        for index in range(4):
            (bad / name / f"{index}.jpg").write_bytes(b"<html>not found</html>")
    spec = {
        "name": "branches",
        "seed": 1,
        "stages": {
            "bad": {"kind": "ingest", "source": {"type": "image_folder", "uri": str(bad)}},
            "good": {
                "kind": "ingest",
                "source": {"type": "image_folder", "uri": str(good)},
                "split": {"test_ratio": 0.4},
            },
            "clean": {"kind": "filter", "data": "bad", "against": ["good@test"]},
            "pixels": {"kind": "baseline", "data": "good", "image_px": 8},
        },
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    words = ("run", "spec.yaml", "--address", ray_cluster.address, "--output", "json")
    done = vitrail(*words, cwd=tmp_path)
    assert done.code == 1, done.stderr
    stages = {stage["name"]: stage for stage in done.document["stages"]}
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "bad": "failed",
        "good": "ran",
        "clean": "skipped",
        "pixels": "ran",
    }
    assert "not_image" in stages["bad"]["error"]
    assert "go on with: vitrail run spec.yaml" in done.stderr

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / '.vitrail' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("branches")
    assert experiment is not None
    statuses = {
        run.data.tags.get("vitrail.stage"): run.info.status
        for run in client.search_runs([experiment.experiment_id])
    }
    assert statuses == {None: "FAILED", "bad": "FAILED", "good": "FINISHED", "pixels": "FINISHED"}


def test_a_tracker_that_is_away_delays_its_metrics_and_nothing_else(
    ray_cluster: RaySession, tmp_path: Path
) -> None:
    with socket.socket() as taken:  # bound, but nobody accepts
        taken.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{taken.getsockname()[1]}"
        words = ("run", "digits", "--address", ray_cluster.address, "--until", "upstream")
        done = vitrail(*words, "--tracking-uri", away, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "metrics wait" in done.stderr
    assert "upstream" in done.stdout
