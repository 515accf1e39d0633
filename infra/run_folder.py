"""`runs/<run>/`: what a run says of itself while it goes on, and after.

run.json       its state: who owns it, how it stands
spec.json      the experiment that it runs, profile and overrides applied
events.jsonl   one line for each event, which the tracker's mirror replays
mirror.json    how far the mirror has come
log.txt        what its processes printed
now/           where each training stage stands, for who watches the run
pause          present once somebody asked for a clean stop
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from infra.atomic_files import JsonLines, disk_errors, read_lines, write_atomic
from schemas.errors import IntegrityError, UsageError
from schemas.experiment import ExperimentSpec
from schemas.runs import Event, MirrorCursor, RunState
from schemas.words import nearest

_STATE_FILE = "run.json"
_SPEC_FILE = "spec.json"
_CLOCK_SLACK_SECONDS = 2.0
"""The start time of a process is derived from the boot time, which moves when clocks are set."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        """Look at a run's folder; nothing is made."""
        self.path = path
        self.events_path = path / "events.jsonl"
        self.log_path = path / "log.txt"
        self.pause_path = path / "pause"
        self._cursor_path = path / "mirror.json"
        self._events: JsonLines | None = None

    @property
    def run(self) -> str:
        """Id of the run: the folder's name."""
        return self.path.name

    def read_state(self) -> RunState:
        """The state of the run.

        Raises:
            IntegrityError: If `run.json` is missing or unreadable.
        """
        path = self.path / _STATE_FILE
        try:
            return RunState.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise IntegrityError(f"{path} is missing or unreadable") from error

    def write_state(self, state: RunState) -> None:
        """Replace the state."""
        self._write(self.path / _STATE_FILE, json.dumps(state.dump(), indent=1))

    def write_spec(self, experiment: ExperimentSpec) -> None:
        """Keep the experiment that runs, its profile applied: what is left to a default stays so.

        With defaults filled in, an axis of a matrix could clash with what nobody asked for.
        """
        given = experiment.model_dump(mode="json", exclude_unset=True, exclude={"profiles"})
        self._write(self.path / _SPEC_FILE, json.dumps(given, indent=1))

    def read_spec(self) -> dict[str, Any] | None:
        """What `write_spec` kept; None of a run that kept nothing.

        Raises:
            IntegrityError: If it is unreadable.
        """
        path = self.path / _SPEC_FILE
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise IntegrityError(f"{path} is unreadable") from error
        return found

    def append(self, event: Event) -> None:
        """Add an event; a line that a dead controller left torn is cut off first."""
        if self._events is None:
            self._events = JsonLines(self.events_path)
        # Not through pydantic's own JSON: it writes the NaN of a diverged run as null.
        self._events.append([json.dumps(event.model_dump())])

    def read_events(self, offset: int) -> list[tuple[Event, int]]:
        """Whole events from byte `offset` on, each with the offset after it.

        Raises:
            IntegrityError: If a line is not an event.
        """
        try:
            lines = read_lines(self.events_path, offset)
            return [(Event.model_validate_json(line), after) for line, after in lines]
        except (ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{self.events_path} holds a line that is not an event") from error

    def load_cursor(self) -> MirrorCursor:
        """How far the mirror has come; from the start where nothing is known.

        A damaged cursor counts as none: the tracker drops what it is told twice.
        """
        try:
            return MirrorCursor.model_validate_json(self._cursor_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return MirrorCursor()

    def save_cursor(self, cursor: MirrorCursor) -> None:
        """Remember how far the mirror has come."""
        self._write(self._cursor_path, json.dumps(cursor.model_dump()))

    def request_pause(self) -> None:
        """Ask the run for a clean stop."""
        with disk_errors("ask for a pause", self.pause_path):
            self.pause_path.touch()

    def close(self) -> None:
        """Close the event log."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write(self, path: Path, text: str) -> None:
        with disk_errors("write the state of the run", path):
            write_atomic(path, text + "\n")


def create_run(runs: Path, state: RunState) -> RunFolder:
    """Make the folder of a new run, named by its id.

    Raises:
        UsageError: If there is a run of this id.
    """
    folder = RunFolder(runs / state.run)
    try:
        with disk_errors("begin a run", folder.path):
            folder.path.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"there is a run {state.run!r} already; give another name") from None
    folder.write_state(state)
    return folder


def open_run(runs: Path, run: str) -> RunFolder:
    """The folder of a run that exists.

    Raises:
        UsageError: If there is none of this id; the nearest one is named.
    """
    folder = RunFolder(runs / run)
    if (folder.path / _STATE_FILE).is_file():
        return folder
    known = [state.run for state in list_runs(runs)]
    near = nearest(run, known)
    meant = f"; did you mean {near}?" if near else ""
    raise UsageError(
        f"there is no run {run!r} in {runs}{meant}",
        hint="vitrail status" if known else None,
    )


def list_runs(runs: Path) -> list[RunState]:
    """The state of every run, newest first; a folder without a readable state is no run."""
    found: list[RunState] = []
    for path in runs.glob(f"*/{_STATE_FILE}"):
        try:
            found.append(RunFolder(path.parent).read_state())
        except IntegrityError:
            continue
    return sorted(found, key=lambda state: (state.started_at, state.run), reverse=True)


def this_process() -> tuple[str, int, float]:
    """Host, process id, and start time in seconds since 1970: who owns what begins here."""
    return socket.gethostname(), os.getpid(), psutil.Process().create_time()


def owner_alive(state: RunState) -> bool | None:
    """Whether the controller of a run still lives; None when it runs on another host."""
    if state.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(state.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        since: float = process.create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(since - state.process_started) < _CLOCK_SLACK_SECONDS
