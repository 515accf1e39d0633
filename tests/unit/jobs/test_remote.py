"""A submitted run as it looks from outside, with its cluster there and gone."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from infra.ray_jobs import JobServer
from infra.run_folder import create_run
from jobs.remote import _job_exit_code, show_logs, show_status
from schemas.errors import UnreachableError
from schemas.runs import RunState, Submission
from tests.support.jobs_server import job, jobs_server

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine has submitted, and a current folder without runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "vitrail" / "submissions"


def submitted(folder: Path, workspace: Path, address: str) -> None:
    told = Submission(run="run-1", address=address, workspace=str(workspace))
    folder.mkdir(parents=True)
    (folder / "run-1.json").write_text(json.dumps(told.dump()))


def begun(workspace: Path, *, host: str, **more: Any) -> None:
    state: dict[str, Any] = {
        "run": "run-1",
        "status": "running",
        "host": host,
        "pid": os.getpid(),
        "process_started": 1.0,
        "started_at": "2026-01-01T00:00:00+00:00",
        "experiment": "digits",
    }
    create_run(workspace / "runs", RunState.parse(state | more))
    (workspace / "runs" / "run-1" / "log.txt").write_text("a line\n")


@pytest.mark.parametrize("follow", [False, True])
def test_logs_are_read_from_the_folder_when_the_cluster_is_gone(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, follow: bool
) -> None:
    submitted(elsewhere, tmp_path / "shared", NOBODY)
    begun(tmp_path / "shared", host="elsewhere")
    show_logs("run-1", None, follow=follow)
    assert capsys.readouterr().out == "a line\n"


def test_a_run_whose_cluster_does_not_answer_stands_as_unknown(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(elsewhere, tmp_path / "shared", NOBODY)
    show_status("run-1", None, "text")
    assert capsys.readouterr().out == "run-1: unknown\n"
    begun(tmp_path / "shared", host="elsewhere")
    show_status("run-1", None, "json")
    assert json.loads(capsys.readouterr().out)["status"] == "unknown"


def test_a_run_whose_controller_died_here_is_killed_whatever_the_cluster(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(elsewhere, tmp_path / "shared", NOBODY)
    begun(tmp_path / "shared", host=socket.gethostname())
    show_status("run-1", None, "json")
    assert json.loads(capsys.readouterr().out)["status"] == "killed"


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (job("SUCCEEDED", driver_exit_code=0), 0),
        (job("STOPPED"), 75),
        (job("FAILED", driver_exit_code=3), 3),
        (job("FAILED", driver_exit_code=-9), 1),
        (job("FAILED", driver_exit_code=0), 1),
        (job("FAILED"), 1),
    ],
)
def test_only_a_job_that_succeeded_ends_with_0(record: dict[str, Any], code: int) -> None:
    with jobs_server() as answers:
        answers.by_path["/api/jobs/run-1"] = [(200, record)]
        assert _job_exit_code(JobServer(answers.address, patience_seconds=0), "run-1") == code


def test_a_job_that_the_server_has_forgotten_is_no_success() -> None:
    with jobs_server() as answers, pytest.raises(UnreachableError, match="no longer knows run-1"):
        _job_exit_code(JobServer(answers.address, patience_seconds=0), "run-1")
