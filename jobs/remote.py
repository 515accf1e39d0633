"""`submit`, and the commands that look at a run from outside: `status`, `logs`, `cancel`."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from infra.code_archive import copy_code
from infra.ray_jobs import JobServer
from infra.run_folder import RunFolder, list_runs, open_run, owner_alive
from jobs.console import print_document, print_outcomes, stderr, stdout
from jobs.progress import LogTail
from jobs.target import Target
from jobs.workspace import Workspace, open_workspace
from schemas.errors import UnreachableError, UsageError
from schemas.runs import RunDocument, RunState, StageOutcome, StageStatus, Submission
from schemas.spec import digest_of

_POLL_SECONDS = 0.5
_SERVER_POLL_SECONDS = 3.0
_CANCEL_SECONDS = 150.0
"""How long `cancel` waits for a clean stop: a step and a checkpoint."""
_PAUSED, _FAILED = 75, 1


def submit_spec(target: Target, address: str, *, tracking_uri: str | None, detach: bool) -> int:
    """Run a pipeline as a Ray job; returns the exit code."""
    experiment = target.experiment()
    workspace = target.place()
    server = JobServer(address)
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        code = copy_code(Path(folder))
        (code / "experiment.json").write_text(json.dumps(experiment.dump()))
        kept = ["--store", workspace.store_uri] if workspace.store_uri else []
        place = [
            "--workspace",
            str(workspace.root),
            *kept,
            "--address",
            "auto",
            "--run-id",
            "{job}",
        ]
        tracking = ["--tracking-uri", tracking_uri] if tracking_uri else []
        run, adopted = server.submit(
            ["-m", "jobs.cli", "run", "experiment.json", *place, *tracking],
            name=f"{experiment.name}-{digest_of([experiment.dump(), str(workspace.root)])[:8]}",
            code=code,
            metadata={"vitrail.experiment": experiment.name},
        )
    _remember(Submission(run=run, address=address, workspace=str(workspace.root)))
    console = stderr()
    console.print(f"{'adopted the running job' if adopted else 'submitted'} {run}", markup=False)
    if detach:
        stdout().print(run, markup=False)
        return 0
    console.print(f"Ctrl-C detaches; vitrail status {run} | vitrail logs -f {run}", markup=False)
    return _follow_job(server, run)


def _follow_job(server: JobServer, run: str) -> int:
    try:
        for text in server.follow(run):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        stderr().print(f"\ndetached; the job goes on: vitrail logs -f {run}", markup=False)
        return 0
    return _job_exit_code(server, run)


def _job_exit_code(server: JobServer, run: str) -> int:
    info = server.info(run)
    if info is None:
        raise UnreachableError(
            f"the Jobs server at {server.address} no longer knows {run}; how it ended is unknown",
            hint=f"vitrail status {run}",
        )
    status = info.status.value
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        stderr().print(f"{run} was stopped; submit the same again to go on", markup=False)
        return _PAUSED
    code = info.driver_exit_code
    if code is None or code <= 0:
        stderr().print(f"error: the job failed: {info.message}", markup=False)
        return _FAILED
    return int(code)


def show_status(run: str | None, folder: Path | None, output: str) -> None:
    """Print how a run stands."""
    submission = _submission(run) if run else None
    workspace = _home(submission, folder)
    if submission is not None and not _visible(workspace, submission.run):
        _show_job(submission)
        return
    state = _state(workspace, run)
    document = _document(RunFolder(workspace.runs / state.run), state, submission)
    if output == "json":
        print_document(document)
        return
    stdout().print(f"{state.run}: {document.status}", markup=False)
    print_outcomes(document)
    if document.tracking_url:
        stdout().print(f"MLflow: {document.tracking_url}", markup=False)


def _show_job(submission: Submission) -> None:
    try:
        server = JobServer(submission.address)
        status = server.status(submission.run) or "unknown to the Jobs server"
        lines = server.logs(submission.run).splitlines()[-20:]
    except UnreachableError as error:
        stderr().print(error.what, markup=False)
        status, lines = "unknown", []
    for line in (f"{submission.run}: {status.lower()}", *lines):
        stdout().print(line, markup=False)


def _document(folder: RunFolder, state: RunState, submission: Submission | None) -> RunDocument:
    """The run as its files tell it; a controller that died without a word is called killed."""
    status = state.status
    if status == "running":
        over = _is_over(state, submission)
        status = "unknown" if over is None and submission else "killed" if over else "running"
    ended = folder.path / "outcome.json"
    if ended.is_file():
        return RunDocument.model_validate_json(ended.read_bytes()).revise(status=status)
    stages: dict[str, StageOutcome] = {}
    for event, _ in folder.read_events(0):
        if event.stage is None or event.type not in {"stage_started", "stage_finished"}:
            continue
        stages[event.stage] = StageOutcome(
            name=event.stage,
            kind=event.kind or "",
            status="running" if event.type == "stage_started" else _stage_status(event.status),
            key=event.tags.get("vitrail.key"),
            artifact=event.tags.get("vitrail.artifact"),
            seconds=0.0,
            metrics=event.metrics,
        )
    return RunDocument(
        run=state.run, status=status, stages=tuple(stages.values()), tracking_url=state.tracking_url
    )


def _stage_status(status: str | None) -> StageStatus:
    if status == "ran":
        return "ran"
    return "failed" if status == "failed" else "paused"


def _is_over(state: RunState, submission: Submission | None) -> bool | None:
    """Whether nothing is alive that would still change the run's state; None if nobody can say."""
    if submission is not None:
        with suppress(UnreachableError):
            status = JobServer(submission.address).status(submission.run)
            return status not in {"PENDING", "RUNNING"}
    alive = owner_alive(state)
    return None if alive is None else not alive


def show_logs(run: str | None, folder: Path | None, *, follow: bool) -> None:
    """Print a log, and with `follow` go on until the run has ended."""
    submission = _submission(run) if run else None
    workspace = _home(submission, folder)
    try:
        if submission is not None and not _visible(workspace, submission.run):
            _show_job_log(submission, follow=follow)
            return
        state = _state(workspace, run)
        _show_log(RunFolder(workspace.runs / state.run), submission, follow=follow)
    except KeyboardInterrupt:
        stderr().print("detached; the run goes on", markup=False)


def _show_job_log(submission: Submission, *, follow: bool) -> None:
    server = JobServer(submission.address)
    pieces = server.follow(submission.run) if follow else iter([server.logs(submission.run)])
    for text in pieces:
        sys.stdout.write(text)
        sys.stdout.flush()


def _show_log(folder: RunFolder, submission: Submission | None, *, follow: bool) -> None:
    tail = LogTail(folder.log_path)
    while True:
        # Asked before the lines are read: what came until the end must not be missed.
        over = not follow or _ends_log(folder.read_state(), submission)
        for line in tail.new_lines():
            stdout().print(line, markup=False)
        if over:
            return
        time.sleep(_POLL_SECONDS if submission is None else _SERVER_POLL_SECONDS)


def _ends_log(state: RunState, submission: Submission | None) -> bool:
    if state.status != "running":
        return True
    over = _is_over(state, submission)
    if over is None and submission is not None:
        stderr().print("the Jobs server does not answer; nobody knows if more comes", markup=False)
        return True
    return bool(over)


def cancel_run(run: str, folder: Path | None) -> None:
    """Ask a run to stop at its next safe point, and wait until it has."""
    submission = _submission(run)
    if submission is not None:
        server = JobServer(submission.address)
        if server.status(run) not in {"PENDING", "RUNNING"}:
            raise UsageError(f"{run} is not running: {server.status(run) or 'unknown'}")
        server.stop(run)
        _wait_for(lambda: server.status(run) not in {"PENDING", "RUNNING"}, run)
        stdout().print(f"{run} is stopped; submit the same again to go on", markup=False)
        return
    workspace = open_workspace(folder)
    state = open_run(workspace.runs, run).read_state()
    alive = owner_alive(state)
    if state.status != "running" or alive is False:
        raise UsageError(f"{run} is not running: {state.status}")
    if alive is None:
        RunFolder(workspace.runs / run).request_pause()
    else:
        os.kill(state.pid, signal.SIGTERM)
    folder_of_run = RunFolder(workspace.runs / run)
    _wait_for(lambda: folder_of_run.read_state().status != "running", run)
    stdout().print(f"{run} is stopped; run the same again to go on", markup=False)


def _wait_for(done: Callable[[], bool], run: str) -> None:
    deadline = time.monotonic() + _CANCEL_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"{run} has not stopped after {_CANCEL_SECONDS:.0f} s; it may yet",
                hint=f"vitrail status {run}",
            )
        time.sleep(_POLL_SECONDS)


def _state(workspace: Workspace, run: str | None) -> RunState:
    """The run that is meant: the one named, or the newest."""
    if run is not None:
        return open_run(workspace.runs, run).read_state()
    runs = list_runs(workspace.runs)
    if not runs:
        raise UsageError(f"there is no run in {workspace.root} yet", hint="vitrail run digits")
    return runs[0]


def _home(submission: Submission | None, folder: Path | None) -> Workspace:
    """Where the files of the run are looked for: here, else where it was submitted to."""
    here = open_workspace(folder)
    if submission is None or _visible(here, submission.run):
        return here
    return Workspace(Path(submission.workspace))


def _visible(workspace: Workspace, run: str) -> bool:
    return (workspace.runs / run / "run.json").is_file()


def _submissions() -> Path:
    """Where this machine remembers what it submitted (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "vitrail" / "submissions"


def _remember(submission: Submission) -> None:
    folder = _submissions()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{submission.run}.json").write_text(json.dumps(submission.dump()))


def _submission(run: str) -> Submission | None:
    path = _submissions() / f"{run}.json"
    return Submission.model_validate_json(path.read_bytes()) if path.is_file() else None
