"""What runs in the process of a stage: hold the key, do the work, commit. No Ray in here."""

import contextlib
import shutil
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from infra.metric_segments import SegmentLog
from jobs.stage import StageEntry, StageTools
from pipeline.ports import ArtifactStore, Attempt, Provenance, RemoteFiles, TaskPool
from schemas.artifacts import StageRecord, StageResult
from schemas.errors import DiskFullError, IntegrityError, StageFailedError, VitrailError
from schemas.runs import InputArtifact, StageRequest

METRICS_FILE = "metrics.jsonl"
_NO_SPACE = {28, 122}
"""errno of a full disk and of a full quota."""


class PauseFile:
    """`StopSignal` as a file in the run's folder: any process of any node can see it."""

    def __init__(self, path: Path) -> None:
        """Watch `path`."""
        self._path = path

    def requested(self) -> bool:
        """True once the file exists."""
        return self._path.exists()


def append_line(path: Path, line: str) -> None:
    """Add a line to a log in one write, so that lines of several processes do not mix.

    A line that cannot be written is lost: what is said of a run must not decide how it ends.
    """
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as log:
        log.write(f"{line}\n".encode())


def log_path(request: StageRequest) -> Path:
    """The log of the run that the stage belongs to."""
    return Path(request.pause_path).with_name("log.txt")


def execute_stage(
    request: StageRequest,
    *,
    entry: StageEntry,
    store: ArtifactStore,
    provenance: Provenance,
    pool: TaskPool,
    files: RemoteFiles | None = None,
) -> StageResult:
    """Make the artifact of a stage, unless somebody else has made it by the time the key is free.

    Raises:
        IntegrityError: If an input is damaged; names the artifact, so that it is made again.
        VitrailError: What else went wrong, as a sentence; the traceback is in the run's log.
    """
    kind = request.spec["kind"]
    pause = PauseFile(Path(request.pause_path))
    reads = {found.artifact for found in request.inputs.values()}
    with store.hold(kind, request.key, reads=reads, stop=pause.requested):
        done = store.lookup(kind, request.key)
        if done is not None:
            fault = store.present(done)
            if fault is None:
                return done
            store.discard(done, fault)
        _check_inputs(request, store)
        attempt = store.begin(kind, request.key)
        tools = _tools(request, attempt, pool, files)
        try:
            return _make(request, entry, store=store, provenance=provenance, tools=tools)
        except VitrailError:
            raise
        except Exception as error:
            append_line(log_path(request), traceback.format_exc())
            raise _as_sentence(request, error) from error


def _check_inputs(request: StageRequest, store: ArtifactStore) -> None:
    """Let nothing be made from bytes that are not those that were committed."""
    inputs: dict[str, InputArtifact] = {found.path: found for found in request.inputs.values()}
    for found in inputs.values():
        fault = store.check_input(found)
        if fault is not None:
            raise IntegrityError(
                f"{found.artifact} is damaged: {fault}",
                where=found.path,
                hint=f"vitrail run SPEC --force {found.stage}",
            )


def _tools(
    request: StageRequest, attempt: Attempt, pool: TaskPool, files: RemoteFiles | None
) -> StageTools:
    log = log_path(request)
    return StageTools(
        attempt=attempt,
        pool=pool,
        stop=PauseFile(Path(request.pause_path)),
        metrics=SegmentLog(attempt.progress / METRICS_FILE),
        say=lambda line: append_line(log, f"{request.stage}: {line}"),
        files=files,
    )


def _make(
    request: StageRequest,
    entry: StageEntry,
    *,
    store: ArtifactStore,
    provenance: Provenance,
    tools: StageTools,
) -> StageResult:
    started_at, clock = datetime.now(UTC), time.monotonic()
    output = entry(request, tools)
    _keep_curve(tools.attempt)
    record = StageRecord(
        experiment=request.experiment,
        stage=request.stage,
        key=request.key,
        key_record=request.key_record,
        spec=request.spec,
        input_artifacts={port: found.artifact for port, found in request.inputs.items()},
        environment=provenance.environment(request.spec["kind"]),
        run=request.run,
        started_at=started_at.isoformat(),
        seconds=time.monotonic() - clock,
        metrics=output.metrics,
    )
    result = store.commit(tools.attempt, record, known_sha256=output.known_sha256)
    for name in output.spent:
        _remove(tools.attempt.progress / name)
    return result


def _remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed only takes space."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _keep_curve(attempt: Attempt) -> None:
    """Put the points of the stage, from all attempts at it, beside its artifact."""
    points = attempt.progress / METRICS_FILE
    if points.is_file() and points.stat().st_size:
        (attempt.path / "logs").mkdir(exist_ok=True)
        shutil.copyfile(points, attempt.path / "logs" / METRICS_FILE)


def _as_sentence(request: StageRequest, error: Exception) -> StageFailedError:
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return DiskFullError(
            f"the disk is full: {error.filename or request.store} could not be written",
            where=request.stage,
            hint="free some space (`vitrail plan` prints the bytes needed), then run again",
        )
    return StageFailedError(
        f"{request.stage} failed: {type(error).__name__}: {error}",
        where=f"the traceback is in {log_path(request)}",
    )
