"""The tracker on a real database and a real server: both look at the same SQLite file."""

import json
import math
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.metric_segments import read_points
from infra.mlflow_tracking import MlflowTracker, check_tracking_uri, ui_command
from infra.run_folder import RunFolder
from pipeline.dag.mirror import Mirror
from schemas.errors import SpecError, UnreachableError, UsageError, VitrailError
from schemas.runs import MetricPoint
from tests.support.mlflow_server import MlflowServer, mlflow_server
from tests.support.runs import add_steps, begin_training, end_training, new_run

__all__ = ["mlflow_server"]

pytestmark = pytest.mark.filterwarnings(
    # MLflow's own use of its libraries.
    "ignore::DeprecationWarning",
    "ignore::PendingDeprecationWarning",
    "ignore::FutureWarning",
)


@pytest.fixture(params=["database", "server"])
def tracker(request: pytest.FixtureRequest, mlflow_server: MlflowServer) -> MlflowTracker:
    """The same place by both ways in: the file, as a local run has it, and the server."""
    if request.param == "server":
        return MlflowTracker(mlflow_server.address, artifact_root=None, experiment="by server")
    return MlflowTracker(
        mlflow_server.uri, artifact_root=mlflow_server.artifact_root, experiment="by database"
    )


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run id of the test's own."""
    return request.node.name


def open_both(tracker: MlflowTracker, run: str, **tags: str) -> tuple[str, str]:
    """A parent and one child."""
    parent = tracker.open_run(run=run, stage=None, parent_id=None, tags=tags, start_ms=1000)
    child = tracker.open_run(
        run=run, stage="pretrain[a='b']", parent_id=parent, tags=tags, start_ms=2000
    )
    return parent, child


def points_of(key: str, values: list[float]) -> list[MetricPoint]:
    """One point for each value."""
    return [
        MetricPoint(key=key, value=value, step=step, at_ms=5000 + step)
        for step, value in enumerate(values)
    ]


def test_a_run_is_opened_once_and_takes_new_tags(tracker: MlflowTracker, run: str) -> None:
    parent, child = open_both(tracker, run)
    assert open_both(tracker, run, note="later") == (parent, child)
    found = tracker._client.get_run(child)
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert found.data.tags["vitrail.run"] == run
    assert found.data.tags["note"] == "later"
    assert found.info.run_name == "pretrain[a='b']"
    assert found.info.start_time == 2000


def test_parameters_are_whole_or_say_that_they_are_not(tracker: MlflowTracker, run: str) -> None:
    _, child = open_both(tracker, run)
    given = {f"field_{i}": str(i) for i in range(150)} | {
        "a.b": "1",
        "long": "x" * 9000,
        "c[0]": "k",
    }
    for _ in range(2):
        tracker.log_params(child, given)
    params = tracker._client.get_run(child).data.params
    assert len(params) == 153
    assert params["a.b"] == "1"
    assert params["c_0_"] == "k"
    assert len(params["long"]) == 6000
    assert params["long"].endswith("... [shortened: 9000 characters]")


def test_a_parameter_that_a_second_try_changed_stands_as_a_tag(
    tracker: MlflowTracker, run: str
) -> None:
    _, child = open_both(tracker, run)
    tracker.log_params(child, {"resources.micro_batch": "8", "seed": "1"})
    tracker.log_params(child, {"resources.micro_batch": "4", "seed": "1"})
    found = tracker._client.get_run(child)
    assert found.data.params["resources.micro_batch"] == "8"
    assert found.data.tags["vitrail.now.resources.micro_batch"] == "4"
    assert "vitrail.now.seed" not in found.data.tags


def test_points_told_twice_stand_once(tracker: MlflowTracker, run: str) -> None:
    _, child = open_both(tracker, run)
    points = points_of("train/loss_nats", [1 / (1 + step) for step in range(1200)])
    tracker.log_points(child, points[:700])
    tracker.log_points(child, points)
    history = tracker._client.get_metric_history(child, "train/loss_nats")
    assert sorted((m.step, m.timestamp, m.value) for m in history) == [
        (p.step, p.at_ms, p.value) for p in points
    ]


def test_a_diverged_loss_does_not_stop_the_others(tracker: MlflowTracker, run: str) -> None:
    _, child = open_both(tracker, run)
    for _ in range(2):
        tracker.log_points(child, points_of("train/loss_nats", [1.0, math.nan, math.inf]))
    history = tracker._client.get_metric_history(child, "train/loss_nats")
    assert [m.step for m in history] == [0, 1, 2]
    assert math.isnan(history[1].value)


def test_a_dataset_is_an_input_with_its_whole_digest(tracker: MlflowTracker, run: str) -> None:
    _, child = open_both(tracker, run)
    for _ in range(2):
        tracker.log_dataset(child, name="pets", digest="ab" * 32, context="train", path="/data")
    (found,) = tracker._client.get_run(child).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("pets", "ab" * 16)
    assert json.loads(found.dataset.source)["uri"] == "/data"
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "train", "vitrail.digest": "ab" * 32}


def test_artifacts_are_served_by_the_server_whoever_logged_them(
    tracker: MlflowTracker, run: str, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    _, child = open_both(tracker, run)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "curve.svg").write_text("<svg/>")
    for _ in range(2):
        tracker.log_folder(child, tmp_path, destination="figures")
    query = urllib.parse.urlencode({"path": "figures/inner/curve.svg", "run_uuid": child})
    assert mlflow_server.get(f"/get-artifact?{query}") == b"<svg/>"
    listing = json.loads(
        mlflow_server.get(f"/ajax-api/2.0/mlflow/artifacts/list?run_id={child}&path=figures")
    )
    assert [entry["path"] for entry in listing["files"]] == ["figures/inner"]
    with pytest.raises(VitrailError, match="is gone"):
        tracker.log_folder(child, tmp_path / "gone", destination="figures")


def test_a_model_is_registered_once_for_a_digest(
    tracker: MlflowTracker, run: str, tmp_path: Path
) -> None:
    (tmp_path / "model.json").write_text("{}")
    _, child = open_both(tracker, run)
    with pytest.raises(VitrailError, match="no artifacts under model/"):
        tracker.register_model(child, name=run, alias="candidate", digest="a" * 64)
    tracker.log_folder(child, tmp_path, destination="model")
    for digest in ("a" * 64, "b" * 64, "a" * 64):
        tracker.register_model(child, name=f"x/{run}", alias="candidate", digest=digest)
    client = tracker._client
    versions = client.search_model_versions(f"name = 'x-{run}'")
    assert sorted(v.tags["vitrail.digest"][0] for v in versions) == ["a", "b"]
    current = client.get_model_version_by_alias(f"x-{run}", "candidate")
    assert current.tags["vitrail.digest"] == "a" * 64
    assert current.run_id == child
    uri = client.get_model_version_download_uri(f"x-{run}", current.version)
    assert _download(uri, tracker, tmp_path / "back") == "{}"


def _download(uri: str, tracker: MlflowTracker, folder: Path) -> str:
    from mlflow.artifacts import download_artifacts

    found = download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracker._uri)
    return (Path(found) / "model.json").read_text()


@pytest.mark.parametrize(
    ("told", "shown"), [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED")]
)
def test_a_closed_run_has_its_status_and_can_be_opened_again(
    tracker: MlflowTracker, run: str, told: str, shown: str
) -> None:
    _, child = open_both(tracker, run)
    for _ in range(2):
        tracker.close_run(child, status=told, end_ms=9000)
    info = tracker._client.get_run(child).info
    assert (info.status, info.end_time) == (shown, 9000)
    assert open_both(tracker, run)[1] == child
    assert tracker._client.get_run(child).info.status == "RUNNING"


def test_a_run_has_an_address_for_browsers(
    tracker: MlflowTracker, run: str, mlflow_server: MlflowServer
) -> None:
    parent, _ = open_both(tracker, run)
    base = mlflow_server.address if tracker._uri.startswith("http") else "http://127.0.0.1:5000"
    experiment = tracker._client.get_run(parent).info.experiment_id
    assert tracker.run_url(parent) == (
        f"{base}/#/experiments/{experiment}/runs/{parent}?workflowType=machine_learning"
    )


def test_what_the_tracker_refuses_is_not_taken_for_its_absence(tracker: MlflowTracker) -> None:
    with pytest.raises(VitrailError, match="refused") as caught:
        tracker.log_params("f" * 32, {"a": "b"})
    assert not isinstance(caught.value, UnreachableError)


def test_a_deleted_experiment_is_used_again(mlflow_server: MlflowServer, run: str) -> None:
    def connect() -> MlflowTracker:
        return MlflowTracker(
            mlflow_server.uri, artifact_root=mlflow_server.artifact_root, experiment=run
        )

    first = connect()
    first._client.delete_experiment(first._experiment_id)
    assert open_both(connect(), run)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "s3://bucket", "databricks"])
def test_what_cannot_be_a_tracker_is_refused_with_what_can(uri: str) -> None:
    with pytest.raises(SpecError, match="sqlite:///FILE"):
        check_tracking_uri(uri)


def test_a_server_that_does_not_answer_is_unreachable_and_shows_no_password() -> None:
    with pytest.raises(UnreachableError) as caught:
        MlflowTracker("http://me:secret@127.0.0.1:9", artifact_root=None, experiment="x")
    assert caught.value.exit_code == 4
    assert caught.value.where == "http://127.0.0.1:9"
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    uri = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    with pytest.raises(UnreachableError, match="cannot be written"):
        MlflowTracker(uri, artifact_root=tmp_path, experiment="x")


def test_a_server_needs_no_other_server(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="open http://host:5000"):
        ui_command("http://host:5000", artifact_root=tmp_path, port=1)


def test_a_new_database_is_made_without_a_word(tmp_path: Path, checkout: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from infra.mlflow_tracking import MlflowTracker; "
        "MlflowTracker(sys.argv[1], artifact_root=Path(sys.argv[2]), experiment='x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db", str(tmp_path)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "new" / "mlflow.db").is_file()


@pytest.fixture
def stoppable_server(mlflow_server: MlflowServer) -> Iterator[MlflowServer]:
    """The session's server, which a test may stop; it runs again afterwards."""
    yield mlflow_server
    if not mlflow_server.is_running:
        mlflow_server.start()


def test_a_server_that_goes_and_comes_back_misses_nothing(
    stoppable_server: MlflowServer, tmp_path: Path
) -> None:
    folder = new_run(tmp_path / "runs")
    said: list[str] = []

    def connect() -> MlflowTracker:
        return MlflowTracker(stoppable_server.address, artifact_root=None, experiment="tests")

    def new_mirror() -> Mirror:
        return Mirror(
            RunFolder(folder.path),
            connect,
            read_points=read_points,
            clock_ms=lambda: 10_000,
            say=said.append,
        )

    log = begin_training(folder, steps=10)
    mirror = new_mirror()
    assert mirror.replay()
    before = RunFolder(folder.path).load_cursor()
    stoppable_server.stop()
    add_steps(log, range(10, 20))
    end_training(folder)
    assert not mirror.replay(final=True)
    assert not new_mirror().replay(final=True)
    assert RunFolder(folder.path).load_cursor() == before
    assert "cannot be reached" in said[0]
    stoppable_server.start()
    mirror = new_mirror()
    assert mirror.replay(final=True)
    _check_delivered(connect(), RunFolder(folder.path), mirror)


def _check_delivered(tracker: MlflowTracker, folder: RunFolder, mirror: Mirror) -> None:
    client: Any = tracker._client
    cursor = folder.load_cursor()
    child = client.get_run(cursor.stage_ids["pretrain"])
    history = client.get_metric_history(child.info.run_id, "train/loss_nats")
    assert [metric.step for metric in history] == list(range(20))
    assert child.data.metrics["test/top1_ratio"] == 0.75
    assert child.data.params == {"optim.peak_lr": "0.001"}
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == cursor.parent_id
    assert client.get_run(cursor.parent_id).info.status == "FINISHED"
    assert client.get_run(cursor.parent_id).data.tags["mlflow.note.content"] == "# A run"
    paths = {entry.path for entry in client.list_artifacts(child.info.run_id)}
    assert paths == {"model", "figures"}
    assert len(client.search_model_versions("name = 'tests-pretrain'")) == 1
    assert mirror.url() == tracker.run_url(cursor.parent_id or "")


def test_environment_variables_of_a_user_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with pytest.raises(UnreachableError):
        MlflowTracker("http://127.0.0.1:9", artifact_root=None, experiment="x")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
