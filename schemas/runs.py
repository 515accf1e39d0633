"""Documents of a run: plan, result, events, and the request that a stage process gets."""

from typing import Any, Literal

from pydantic import Field

from schemas.artifacts import KeyRecord
from schemas.gates import UnmetGate
from schemas.spec import Semantic, Spec

Action = Literal["run", "reuse", "pending", "skip"]
StageStatus = Literal["running", "ran", "reused", "failed", "skipped", "paused"]
RunStatus = Literal["running", "finished", "failed", "paused", "killed", "unknown"]
"""`killed` and `unknown` (its cluster does not answer) are what onlookers find, never written."""


class Change(Spec):
    """One field of a key record that differs from the last time."""

    field: Semantic[str]
    """Dotted: `optim.peak_lr`, `inputs.data`, `libraries.torch`, `revision`, `seed`."""
    before: Semantic[Any]
    after: Semantic[Any]

    def __str__(self) -> str:
        """`field before -> after`; digests are shortened."""
        return f"{self.field} {_short(self.before)} -> {_short(self.after)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) >= 64 else text


class Decision(Spec):
    """What the plan says of one stage, and why."""

    stage: Semantic[str]
    kind: Semantic[str]
    action: Semantic[Action]
    reason: Semantic[str]
    """A sentence for people."""
    changes: Semantic[tuple[Change, ...]] = ()
    key: Semantic[str | None] = None
    """None while an input is not made yet."""
    artifact: Semantic[str | None] = None
    code_changed: Semantic[tuple[str, ...]] = ()
    """Source files of ours that the reused stage uses and that changed since it was made."""
    estimate: Semantic[dict[str, float]] = {}
    """Cost by name: `disk_bytes`, `memory_bytes`, `flops`, `parameters`, `last_seconds`."""


class PlanDocument(Spec):
    """`vitrail plan --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    experiment: Semantic[str]
    workspace: Semantic[str]
    stages: Semantic[tuple[Decision, ...]]
    disk_bytes_needed: Semantic[int] = Field(ge=0)
    disk_bytes_free: Semantic[int] = Field(ge=0)


class StageOutcome(Spec):
    """One stage of a finished run."""

    name: Semantic[str]
    kind: Semantic[str]
    status: Semantic[StageStatus]
    key: Semantic[str | None]
    artifact: Semantic[str | None]
    seconds: Semantic[float]
    metrics: Semantic[dict[str, float]]
    error: Semantic[str | None] = None


class RunDocument(Spec):
    """`vitrail run --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    run: Semantic[str]
    status: Semantic[RunStatus]
    stages: Semantic[tuple[StageOutcome, ...]]
    tracking_url: Semantic[str | None] = None
    report: Semantic[str | None] = None
    """Path of the newest report page among the stages."""
    unmet_gates: Semantic[tuple[UnmetGate, ...]] = ()
    """Measurements, new or reused, that are not what `gate` asks for; then the run exits with 7."""


class Submission(Spec):
    """Where a submitted run lives: kept by the machine that submitted it."""

    schema_version: Semantic[Literal[1]] = 1
    run: Semantic[str]
    address: Semantic[str]
    """The Jobs server."""
    workspace: Semantic[str]
    """Folder on the cluster's nodes."""


class InputArtifact(Spec):
    """What a stage reads through one port."""

    stage: Semantic[str]
    kind: Semantic[str]
    artifact: Semantic[str]
    digest: Semantic[str]
    path: Semantic[str]
    """Folder of the attempt that was committed."""
    split: Semantic[str | None]
    metrics: Semantic[dict[str, float]]


class StageRequest(Spec):
    """Everything a stage process needs: a function of this, the disk, and nothing else."""

    experiment: Semantic[str]
    run: Semantic[str]
    stage: Semantic[str]
    """Name in the DAG, variant included."""
    spec: Semantic[dict[str, Any]]
    """Of the kind's own class; parse it with `STAGE_KINDS[spec['kind']]`."""
    seed: Semantic[int]
    key: Semantic[str]
    key_record: Semantic[KeyRecord]
    inputs: Semantic[dict[str, InputArtifact]]
    store: Semantic[str]
    """URI of the artifact store."""
    pause_path: Semantic[str]
    """When this file exists, long work stops at the next safe point and raises `PausedError`."""


class Event(Spec):
    """One line of `runs/<run>/events.jsonl`, which the tracker's mirror replays."""

    type: Semantic[Literal["run_started", "stage_started", "stage_finished", "run_finished", "log"]]
    at_ms: Semantic[int]
    """Milliseconds since 1970, UTC."""
    stage: Semantic[str | None] = None
    kind: Semantic[str | None] = None
    status: Semantic[str | None] = None
    message: Semantic[str | None] = None
    params: Semantic[dict[str, str]] = {}
    tags: Semantic[dict[str, str]] = {}
    metrics: Semantic[dict[str, float]] = {}
    metrics_path: Semantic[str | None] = None
    """Segment file with the points of the stage."""
    datasets: Semantic[tuple[dict[str, str], ...]] = ()
    """Each with `name`, `digest` (64 hex), `context`, `path`."""
    artifacts: Semantic[tuple[str, ...]] = ()
    """Folders whose files belong in the tracker."""
    register_as: Semantic[str | None] = None


class MetricPoint(Spec):
    """One line of a metric segment."""

    key: Semantic[str]
    """`split/name_unit`."""
    value: Semantic[float]
    step: Semantic[int] = Field(ge=0)
    at_ms: Semantic[int]


class TrainingPace(Spec):
    """`runs/<run>/now/<stage>.json`: where a training stage stands; replaced once a second."""

    schema_version: Semantic[Literal[1]] = 1
    step: Semantic[int] = Field(ge=0)
    """Optimizer steps done."""
    total_steps: Semantic[int] = Field(gt=0)
    loss: Semantic[float | None]
    """Of the last step; null where it is not finite."""
    images_per_second: Semantic[float | None] = None
    """Of all workers, on average since this start; null before the second step."""
    eta_seconds: Semantic[float | None] = None
    """Until the last step at this rate; null before the second step."""


class RunState(Spec):
    """`runs/<run>/run.json`: whose run it is, and how it stands."""

    schema_version: Semantic[Literal[1]] = 1
    run: Semantic[str]
    experiment: Semantic[str]
    status: Semantic[RunStatus]
    host: Semantic[str]
    """Where the controller runs."""
    pid: Semantic[int]
    """The controller's process; only with its start time does the number mean anything."""
    process_started: Semantic[float]
    """When that process began, in seconds since 1970."""
    started_at: Semantic[str]
    """ISO 8601, UTC."""
    ended_at: Semantic[str | None] = None
    address: Semantic[str | None] = None
    """Ray cluster or Jobs server; None for a Ray of the run's own."""
    submission: Semantic[str | None] = None
    """Id of the Ray job, for a submitted run."""
    tracking_uri: Semantic[str | None] = None
    tracking_url: Semantic[str | None] = None
    """Where a browser shows the run."""


class MirrorCursor(Spec):
    """`runs/<run>/mirror.json`: how much of a run the tracker has been told."""

    schema_version: Semantic[Literal[1]] = 1
    event_offset: Semantic[int] = Field(default=0, ge=0)
    """Bytes of `events.jsonl` that are delivered."""
    started: Semantic[Event | None] = None
    """The `run_started` event, kept until a stage makes the tracking run worth opening."""
    parent_id: Semantic[str | None] = None
    stage_ids: Semantic[dict[str, str]] = {}
    """Stage -> tracking id."""
    segments: Semantic[dict[str, str]] = {}
    """Stage that is open -> its segment file."""
    segment_offsets: Semantic[dict[str, int]] = {}
    """Segment file -> bytes delivered."""
    last_steps: Semantic[dict[str, dict[str, int]]] = {}
    """Stage -> metric -> last step delivered: a stage tried again repeats some."""
