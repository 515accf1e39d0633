"""What a stage's entry point is given and gives back; `jobs/wiring.py` has the table of kinds."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.ports import Attempt, MetricLog, RemoteFiles, StopSignal, TaskPool
from schemas.runs import StageRequest


@dataclass(frozen=True)
class StageTools:
    """The ports that a stage works through."""

    attempt: Attempt
    pool: TaskPool
    stop: StopSignal
    metrics: MetricLog
    say: Callable[[str], None]
    """Prints one progress line, seen by the person who runs the pipeline."""
    files: RemoteFiles | None = None
    """Reads what lies behind URIs; None: only files of this machine can be read."""


@dataclass(frozen=True)
class StageOutput:
    """What a stage made, besides the files in its attempt."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Final figures, `split/name_unit` -> value."""
    known_sha256: dict[str, str] = field(default_factory=dict)
    """Path in the attempt -> sha256 in hex, of files that are hashed already."""
    spent: tuple[str, ...] = ()
    """Files and folders of the progress that nobody needs once the artifact is committed."""


StageEntry = Callable[[StageRequest, StageTools], StageOutput]
