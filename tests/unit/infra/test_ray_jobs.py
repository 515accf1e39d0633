"""What a Jobs server's answers, and its silence, mean."""

from pathlib import Path

import pytest

from infra.ray_jobs import JobServer
from schemas.errors import UnreachableError
from tests.support.jobs_server import Answers, job, jobs_server


def test_only_an_answer_of_404_means_that_there_is_no_such_job() -> None:
    with jobs_server() as answers:
        server = JobServer(answers.address, patience_seconds=0)
        assert server.info("run-1") is None
        assert server.logs("run-1") == ""
        answers.by_path["/api/jobs/run-1"] = [(500, "restarting")]
        with pytest.raises(UnreachableError, match=r"500: .*restarting"):
            server.info("run-1")


def test_a_server_that_comes_back_is_asked_again() -> None:
    with jobs_server() as answers:
        server = JobServer(answers.address, patience_seconds=20)
        answers.by_path["/api/jobs/run-1"] = [(502, "proxy"), (200, job("RUNNING"))]
        assert server.status("run-1") == "RUNNING"


def test_a_server_that_went_away_is_unreachable() -> None:
    with jobs_server() as answers:
        server = JobServer(answers.address, patience_seconds=0)
    with pytest.raises(UnreachableError, match="does not answer"):
        server.status("run-1")


def know_all_packages(answers: Answers) -> None:
    package = "/api/packages/gcs/"
    answers.take = lambda path: (  # type: ignore[method-assign]
        (200, {}) if path.startswith(package) else type(answers).take(answers, path)
    )


def test_a_cluster_that_has_just_started_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "code.py").touch()
    with jobs_server() as answers:
        submitted = (200, {"submission_id": "x", "job_id": "x"})
        answers.by_path["/api/jobs/"] = [(200, []), (500, "No available agent"), submitted]
        know_all_packages(answers)
        server = JobServer(answers.address, patience_seconds=20)
        assert server.submit(["-m", "x"], name="mine", code=tmp_path, metadata={})[1] is False
    assert len(answers.posted) == 2


def test_braces_in_a_path_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "code.py").touch()
    with jobs_server() as answers:
        answers.by_path["/api/jobs/"] = [(200, []), (200, {"submission_id": "x", "job_id": "x"})]
        know_all_packages(answers)
        server = JobServer(answers.address, patience_seconds=0)
        words = ["-m", "x", "/data/{a}/{job}", "{job}"]
        run, adopted = server.submit(words, name="mine", code=tmp_path, metadata={})
    assert (run, adopted) == ("mine-1", False)
    assert answers.posted[0]["entrypoint"].endswith("-m x '/data/{a}/{job}' mine-1")
