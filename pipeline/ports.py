"""What the library needs from outside; `infra/` fulfils each protocol, and so do the test fakes."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from schemas.artifacts import Environment, StageRecord, StageResult
from schemas.runs import InputArtifact, MetricPoint, StageRequest, TrainingPace

X = TypeVar("X")
Y = TypeVar("Y")


class TaskPool(Protocol):
    """Runs one function over many small, picklable descriptions of work, somewhere."""

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,
        memory_bytes: int = 0,
        gpus: float = 0,
        at_once: int | None = None,
    ) -> Iterator[tuple[X, Y]]:
        """Yield `(item, function(item))` as they end; a bounded number is in flight.

        `label` names the work in progress lines; `memory_bytes` is what one task may take, where it
        is much; `gpus` is how many each task has, or what part of one; at most `at_once` tasks are
        in flight, where it is given. A task that is lost with its process or node, or that raises
        an error of the infrastructure, is tried again; any other exception of `function` ends the
        map.
        """
        ...


@dataclass(frozen=True)
class FileStatus:
    """One file behind a URI, as listing alone tells it."""

    path: str
    """Relative to the folder that was listed, with forward slashes; a file's own name otherwise."""
    size: int
    """Bytes."""
    version: str
    """ETag, version id or modification time: another value means that the bytes may differ."""


class RemoteFiles(Protocol):
    """Files behind URIs such as `s3://bucket/key`; picklable, so that tasks can take it along.

    Raises, in every method: `UnreachableError` where the store does not answer or refuses access,
    and `DataError` where what was asked for is not there.
    """

    def walk(self, uri: str) -> Iterator[FileStatus]:
        """Every file below a folder, by path; holds one page of the listing at a time."""
        ...

    def status(self, uri: str) -> FileStatus | None:
        """The file at a URI, or None if there is none (a folder is none)."""
        ...

    def open(self, uri: str) -> BinaryIO:
        """A seekable, buffered reader of one file."""
        ...

    def read(self, uri: str, *, start: int = 0, size: int | None = None) -> bytes:
        """A range of a file's bytes; all from `start` on where `size` is None."""
        ...

    def fetch(self, uri: str, target: Path) -> None:
        """Copy a whole file to a new local file."""
        ...


class MetricLog(Protocol):
    """Where the figures of a running stage go, point by point."""

    def log(self, points: dict[str, float], *, step: int) -> None:
        """Append one point for each key; a (key, step) that stands already is not written again."""
        ...


class PaceLog(Protocol):
    """Where people see how far a training stage is."""

    def show(self, pace: TrainingPace) -> None:
        """Show it in place of what was shown before; drops what comes too fast, never raises."""
        ...


class StopSignal(Protocol):
    """Whether somebody asked for a clean stop."""

    def requested(self) -> bool:
        """True from the request on; cheap enough to ask at every step."""
        ...


class Attempt(Protocol):
    """One try at making an artifact: a private folder that nobody sees until it is committed."""

    path: Path
    """Files written here become the artifact; those under `logs/` and `state/`
    are not part of its digest."""
    progress: Path
    """Folder shared by all attempts at this key: what a later attempt goes on from."""


class ArtifactStore(Protocol):
    """Immutable artifacts by key; see `schemas.artifacts` for the documents."""

    uri: str
    """Opens the same store in any process of the run."""

    def lookup(self, kind: str, key: str) -> StageResult | None:
        """The committed result of a key, or None."""
        ...

    def path(self, result: StageResult) -> Path:
        """Folder of the committed attempt, where its files are once they are on this machine."""
        ...

    def local(self, result: StageResult) -> Path:
        """The same, with its files on this machine for as long as this process lives."""
        ...

    def progress(self, artifact: str) -> Path:
        """Folder that all attempts at an artifact share."""
        ...

    def record(self, result: StageResult) -> StageRecord:
        """The record beside a committed result."""
        ...

    def present(self, result: StageResult) -> str | None:
        """None if every file is there, size and mtime equal; else a sentence on the first fault."""
        ...

    def verify(self, result: StageResult) -> str | None:
        """As `present`, but reads every byte and compares sha256."""
        ...

    def check_input(self, artifact: InputArtifact) -> str | None:
        """As `verify`, for what is about to be read; what was found whole is not read each time."""
        ...

    def discard(self, result: StageResult, reason: str) -> None:
        """Take a result out of sight, so that its key is made again; its bytes are kept aside.

        The progress that led to it goes: the key is made again from the beginning.
        """
        ...

    def begin(self, kind: str, key: str) -> Attempt:
        """A fresh attempt at a key."""
        ...

    def hold(
        self,
        kind: str,
        key: str,
        *,
        reads: Collection[str] = (),
        stop: Callable[[], bool] | None = None,
    ) -> "Hold":
        """Exclusive use of a key while the `with` block lasts; waits for another holder.

        `reads` names the artifacts that the holder needs meanwhile, so that nobody removes them;
        `stop` ends the waiting with `PausedError`.
        """
        ...

    def commit(
        self, attempt: Attempt, record: StageRecord, *, known_sha256: dict[str, str]
    ) -> StageResult:
        """Hash, write the documents, publish; returns the winner, which may be another attempt.

        `known_sha256` maps paths of files that the stage has hashed already.
        """
        ...

    def get_ref(self, experiment: str, stage: str) -> StageResult | None:
        """What the stage of this name made last."""
        ...

    def set_ref(self, experiment: str, stage: str, result: StageResult) -> None:
        """Remember what the stage of this name made or reused."""
        ...


class Hold(Protocol):
    """A context manager that owns a key."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


class StageRunner(Protocol):
    """Runs stages somewhere, several at a time."""

    def submit(self, request: StageRequest) -> None:
        """Begin a stage; returns at once."""
        ...

    def wait(
        self, timeout_seconds: float
    ) -> Sequence[tuple[StageRequest, StageResult | BaseException]]:
        """Stages that ended since the last call; empty when the time is over first."""
        ...

    def close(self) -> None:
        """End whatever still runs; no process is left behind."""
        ...


class Tracker(Protocol):
    """A place where people browse runs. Every call may be repeated: equal calls add nothing."""

    def open_run(
        self,
        *,
        run: str,
        stage: str | None,
        parent_id: str | None,
        tags: dict[str, str],
        start_ms: int,
    ) -> str:
        """Find or create the tracking run of a pipeline run (stage None) or of one stage of it."""
        ...

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Flat parameters with the spec's own dotted names."""
        ...

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Metric points with their own timestamps."""
        ...

    def log_dataset(self, run_id: str, *, name: str, digest: str, context: str, path: str) -> None:
        """A dataset input; `digest` has 64 hex digits."""
        ...

    def log_folder(self, run_id: str, folder: Path, *, destination: str) -> None:
        """Copy the files of a folder as artifacts."""
        ...

    def register_model(self, run_id: str, *, name: str, alias: str, digest: str) -> None:
        """Enter the run's `model` artifacts in the registry, once for each digest; set an alias."""
        ...

    def close_run(self, run_id: str, *, status: str, end_ms: int) -> None:
        """Set the final status: `finished`, `failed` or `killed`."""
        ...

    def run_url(self, run_id: str) -> str:
        """Where a browser shows the run."""
        ...


class Provenance(Protocol):
    """Facts of the machine, the packages and the code."""

    def environment(self, kind: str) -> Environment:
        """Everything that the record of a stage of this kind keeps."""
        ...

    def library_versions(self, names: Sequence[str]) -> dict[str, str]:
        """Distribution -> installed version."""
        ...
