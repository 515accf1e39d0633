"""The first stages of a recipe into a bucket, and what a second machine finds there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.runs import RunDocument
from tests.support.s3_server import s3_server

pytestmark = pytest.mark.ray


def vitrail(workspace: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words, "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "VITRAIL_WORKSPACE": str(workspace)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_one_machine_made_another_reuses_and_reads(tmp_path: Path) -> None:
    with s3_server() as bucket:
        words = ("run", "digits", "--until", "clean")
        made = vitrail(tmp_path / "one", *words, "--store", f"{bucket}/store")
        assert _statuses(made) == {"upstream": "ran", "downstream": "ran", "clean": "ran"}
        again = vitrail(tmp_path / "one", *words)
        other = vitrail(tmp_path / "other", *words, "--store", f"{bucket}/store")
        assert _statuses(again) == _statuses(other) == dict.fromkeys(_statuses(made), "reused")
        assert not list((tmp_path / "other" / "copies").rglob("*.arrow")), "nothing was fetched"
        found = json.loads(vitrail(tmp_path / "other", "data", "inspect", "digits", "clean"))
        assert found["digest"]
        assert list((tmp_path / "other" / "copies").rglob("*.json"))
        assert json.loads(vitrail(tmp_path / "other", "verify"))["faults"] == []


def _statuses(text: str) -> dict[str, str]:
    stages = RunDocument.model_validate_json(text).stages
    return {stage.name: stage.status for stage in stages if stage.status != "skipped"}
