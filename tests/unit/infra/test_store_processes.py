"""Several processes at one store, and processes that are killed in it."""

import re
import subprocess
import sys
from pathlib import Path

from infra.storage import LocalStore
from tests.support.artifacts import KIND, stage_record
from tests.support.stores import Place


def _run(what: str, *places: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.store_processes", what, *map(str, places)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_of_eight_processes_that_commit_one_key_at_once_exactly_one_wins(
    place: Place, tmp_path: Path
) -> None:
    _run("race", place.uri, tmp_path / "racers")


def test_killed_at_any_fault_point_the_same_again_comes_to_the_same(place: Place) -> None:
    points = _run("faults", place.uri, place.local).splitlines()
    told = [
        re.sub(r"[0-9A-Z]{26}", "ULID", re.sub(r"-[0-9a-f]{12}", "", point)) for point in points
    ]
    attempt = "artifacts/evaluate/attempts/ULID"
    commit = [f"write {attempt}/manifest.json", f"write {attempt}/record.json", f"settle {attempt}"]
    if place.is_s3:
        commit += [f"put {attempt}/files/inner/weights.bin", f"put {attempt}/record.json"]
        commit += [f"put {attempt}/manifest.json"]
    commit += ["create artifacts/evaluate/result.json"]
    assert [point for point in told if point in commit] == commit
    assert told.count("delete artifacts/evaluate/result.json") == 1
    assert "write trash/evaluate/ULID.json" in told
    assert told.index(f"delete {attempt}/manifest.json") < told.index(f"delete {attempt}/")


def test_a_commit_killed_before_any_change_of_the_disk_is_invisible_or_whole(
    tmp_path: Path,
) -> None:
    points = int(_run("crash", tmp_path))
    assert points > 10


def test_a_waiting_process_names_the_holder_and_goes_on_when_it_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.support.store_processes", "hold", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        holder.kill()

    with LocalStore(tmp_path, say=say).hold(KIND, stage_record().key):
        pass
    holder.wait()
    holder.stdout.close()
    assert len(said) == 1
    assert f"process {holder.pid} on" in said[0]
