from pathlib import Path

from infra.run_folder import RunFolder, create_run
from jobs.catch_up import catch_up
from jobs.workspace import Workspace
from schemas.runs import Event
from tests.support.runs import run_state


def ended_run(workspace: Workspace, run: str, *, day: int) -> RunFolder:
    """A run that reused everything, of which no tracker hears."""
    started_at = f"2026-01-{day:02}T00:00:00+00:00"
    folder = create_run(workspace.runs, run_state(run, started_at=started_at))
    folder.append(Event(type="run_started", at_ms=1))
    folder.append(Event(type="run_finished", at_ms=2, status="finished"))
    folder.close()
    folder.write_state(folder.read_state().revise(status="finished"))
    return folder


def test_a_run_that_cannot_be_read_is_said_and_the_others_are_told(tmp_path: Path) -> None:
    workspace, said = Workspace(tmp_path), list[str]()
    older = ended_run(workspace, "older", day=1)
    for number, line in enumerate((b"nonsense\n", b"\xff\xfe\n")):
        broken = ended_run(workspace, f"broken-{number}", day=2 + number)
        broken.events_path.write_bytes(line)
    newer = ended_run(workspace, "newer", day=9)
    catch_up(workspace, tracking_uri="sqlite:///unused", deadline_seconds=600, say=said.append)
    for folder in (older, newer):
        assert folder.load_cursor().event_offset == folder.events_path.stat().st_size
    assert [text.partition(":")[0] for text in said] == [
        "the tracker is not told of the earlier run broken-1",
        "the tracker is not told of the earlier run broken-0",
    ]
    assert all("not an event" in text and "\n" not in text for text in said)
