import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.run_folder import RunFolder, create_run, list_runs, open_run, owner_alive
from infra.time_ids import attempt_id, run_id
from schemas.errors import UnreachableError, UsageError
from schemas.runs import Event, MirrorCursor
from tests.support.runs import new_run, run_state


def test_a_run_is_found_again_with_its_state(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.write_state(folder.read_state().revise(status="finished", ended_at="later"))
    again = open_run(tmp_path, "run-1")
    assert again.read_state() == run_state().revise(status="finished", ended_at="later")
    assert again.run == "run-1"


def test_a_run_id_is_given_once(tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(UsageError, match="there is a run 'run-1' already"):
        new_run(tmp_path)


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    new_run(tmp_path, "run-1")
    with pytest.raises(UsageError, match="did you mean run-1"):
        open_run(tmp_path, "run-2")
    with pytest.raises(UsageError, match="there is no run"):
        open_run(tmp_path / "none", "run-2")


def test_runs_are_listed_newest_first_and_other_folders_are_left_out(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []
    for number in (2, 3, 1):
        create_run(tmp_path, run_state(f"r{number}", started_at=f"2026-01-0{number}"))
    (tmp_path / "other").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    assert [state.run for state in list_runs(tmp_path)] == ["r3", "r2", "r1"]


def test_events_come_back_each_with_the_offset_after_it(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    events = [
        Event(type="log", at_ms=number, message="é\n", metrics={"test/x": number / 3})
        for number in range(3)
    ]
    for event in events:
        folder.append(event)
    read = folder.read_events(0)
    assert [event for event, _ in read] == events
    assert folder.read_events(read[0][1]) == read[1:]
    assert folder.read_events(read[-1][1]) == []


def test_an_event_that_a_dead_controller_left_torn_is_cut_off(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.append(Event(type="log", at_ms=1))
    folder.append(Event(type="log", at_ms=2, metrics={"test/x": math.inf}))
    folder.close()
    folder.events_path.write_bytes(folder.events_path.read_bytes()[:-5])
    again = RunFolder(folder.path)
    again.append(Event(type="log", at_ms=3))
    assert [event.at_ms for event, _ in again.read_events(0)] == [1, 3]


def test_a_cursor_is_remembered_and_a_damaged_one_begins_anew(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    assert folder.load_cursor() == MirrorCursor()
    cursor = MirrorCursor(event_offset=7, stage_ids={"a": "b"}, last_steps={"a": {"k": 3}})
    folder.save_cursor(cursor)
    assert RunFolder(folder.path).load_cursor() == cursor
    (folder.path / "mirror.json").write_text("{")
    assert folder.load_cursor() == MirrorCursor()


def test_a_pause_is_a_file_that_any_process_sees(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    assert not folder.pause_path.exists()
    folder.request_pause()
    assert folder.pause_path.exists()


def test_the_owner_of_a_run_is_this_very_process_or_a_dead_one() -> None:
    state = run_state()
    assert owner_alive(state) is True
    assert owner_alive(state.revise(process_started=state.process_started - 100)) is False
    assert owner_alive(state.revise(host="elsewhere")) is None


def test_an_owner_that_ended_is_dead_even_before_its_parent_asked() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    state = run_state().revise(pid=child.pid, process_started=process.create_time())
    assert owner_alive(state) is True
    child.kill()
    psutil.wait_procs([process], timeout=0)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        pass
    assert owner_alive(state) is False
    child.communicate()
    assert owner_alive(state) is False


def test_runs_that_cannot_be_written_are_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnreachableError, match="cannot begin a run"):
        new_run(tmp_path / "file" / "runs")


def test_names_sort_by_time() -> None:
    times = [0, 1, 31, 32, 10**18, 10**18 + 1, 2**63]
    names = [attempt_id(time, b"\xff" * 8) for time in times]
    assert names == sorted(names)
    assert {len(name) for name in names} == {26}
    assert run_id(1_767_225_600 * 10**9, b"abc") == "20260101-000000-616263"
