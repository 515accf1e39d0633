"""Tells the tracker what a run has written down: events and metric points, each at least once.

The run's own files are the truth. A cursor beside them says how much of them the tracker has been
told; it moves after each delivery, so that a crash or an absent tracker costs nothing but a
repetition, and the tracker drops what it is told twice. Knows no tracker and no storage: both
arrive as protocols.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline.ports import Tracker
from schemas.artifacts import FILES_FOLDER
from schemas.errors import UnreachableError, VitrailError
from schemas.runs import Event, MetricPoint, MirrorCursor

ReadPoints = Callable[[Path, int], tuple[list[MetricPoint], int]]
"""Reads a segment file from a byte offset; returns the points and the offset after them."""

DIGEST_TAG = "vitrail.digest"
"""Tag of a `stage_finished` event that registers a model: the artifact's content digest."""

_STATUS = {"ran": "finished", "finished": "finished", "reused": "finished", "failed": "failed"}
"""What the tracker calls an end; all others (paused, skipped, killed) are `killed` there."""
_POINTS_PER_CALL = 1000
_RETRY_MS = 20_000
"""How long a tracker that was away is left alone, unless the delivery is the final one."""
_ALIAS = "candidate"
_MESSAGE_TAG = "vitrail.message"


class Journal(Protocol):
    """The files of a run: `infra.run_folder.RunFolder`."""

    @property
    def run(self) -> str:
        """Id of the run."""
        ...

    def append(self, event: Event) -> None:
        """Add an event."""
        ...

    def read_events(self, offset: int) -> list[tuple[Event, int]]:
        """Events from byte `offset` on, each with the offset after it."""
        ...

    def load_cursor(self) -> MirrorCursor:
        """How much has been delivered; an empty cursor at first."""
        ...

    def save_cursor(self, cursor: MirrorCursor) -> None:
        """Remember how much has been delivered."""
        ...


class Mirror:
    """Replays one run; may be stopped at any moment and made anew over the same files."""

    def __init__(
        self,
        journal: Journal,
        tracker_factory: Callable[[], Tracker],
        *,
        read_points: ReadPoints,
        clock_ms: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """Begin where the cursor stands; the tracker is connected when there is news for it.

        Args:
            journal: The files of the run.
            tracker_factory: Connects; may raise `UnreachableError`.
            read_points: Reads a metric segment.
            clock_ms: Milliseconds since 1970, UTC.
            say: Told what could not be delivered, and that a tracker is away.
        """
        self._journal = journal
        self._factory = tracker_factory
        self._read_points = read_points
        self._clock_ms = clock_ms
        self._say = say
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None
        self._away_since_ms: int | None = None
        self._cursor = journal.load_cursor()

    def replay(self, *, final: bool = False) -> bool:
        """Deliver what is new; True if nothing is left to tell.

        A tracker that cannot be reached is left alone for a while; with `final` it is tried at
        once.
        """
        with self._lock:
            if not final and self._is_resting():
                return False
            try:
                self._deliver()
            except UnreachableError as error:
                self._rest(error)
                return False
            self._away_since_ms = None
            return True

    def close_orphan(self) -> bool:
        """End a run whose process is dead without having said so: what is open was killed.

        Only for a run that nobody works on any more. True if the tracker knows it now.
        """
        started, ended = self._open_stages()
        if not ended:
            end = Event(
                type="run_finished",
                at_ms=self._clock_ms(),
                status="killed",
                message="the process of the run died",
            )
            for stage in started:
                self._journal.append(end.revise(type="stage_finished", stage=stage))
            self._journal.append(end)
        return self.replay(final=True)

    def url(self) -> str | None:
        """Where a browser shows the run; None while this mirror has told the tracker nothing.

        Never waits, not even for a delivery that hangs.
        """
        tracker, parent_id = self._tracker, self._cursor.parent_id
        return None if tracker is None or parent_id is None else tracker.run_url(parent_id)

    def _deliver(self) -> None:
        for event, after in self._journal.read_events(self._cursor.event_offset):
            self._apply(event)
            self._save(event_offset=after)
        for stage in self._cursor.segments:
            self._drain(stage)

    def _apply(self, event: Event) -> None:
        match event.type:
            case "run_started":
                # A run that reuses everything shall not appear: wait for its first stage.
                self._save(started=event)
            case "stage_started":
                self._start_stage(event)
            case "stage_finished":
                self._finish_stage(event)
            case "run_finished":
                self._finish_run(event)
            case "log":
                pass

    def _start_stage(self, event: Event) -> None:
        stage = _stage_of(event)
        run_id = self._open_child(event)
        with self._refusal_said():
            self._connected().log_params(run_id, event.params)
        if event.metrics_path is not None:
            self._save(segments=self._cursor.segments | {stage: event.metrics_path})

    def _finish_stage(self, event: Event) -> None:
        """The order is such that a closed tracking run is a complete one."""
        stage = _stage_of(event)
        run_id = self._cursor.stage_ids.get(stage)
        if run_id is None:
            return  # it never started: reused, or skipped
        self._drain(stage)
        if event.metrics_path is not None:
            # The copy beside the artifact ends the curve even if the work in progress is gone.
            self._save(segments=self._cursor.segments | {stage: event.metrics_path})
            self._drain(stage)
        if event.tags or event.message:
            told = {_MESSAGE_TAG: event.message} if event.message else {}
            self._open_child(event.revise(tags=event.tags | told))
        self._log_final(event, stage, run_id)
        self._log_files(event, run_id)
        self._close(run_id, event)
        left = {name: path for name, path in self._cursor.segments.items() if name != stage}
        self._save(segments=left)

    def _finish_run(self, event: Event) -> None:
        parent_id = self._cursor.parent_id
        if parent_id is None:
            return
        for stage in self._cursor.segments:
            # Open still: the run ended without a word on it.
            self._drain(stage)
            self._close(self._cursor.stage_ids[stage], event)
        self._save(segments={})
        with self._refusal_said():
            self._connected().log_points(parent_id, _points(event, step=0))
        if event.tags:
            self._tag_parent(event)
        self._close(parent_id, event)

    def _tag_parent(self, event: Event) -> None:
        self._connected().open_run(
            run=self._journal.run,
            stage=None,
            parent_id=None,
            tags=event.tags,
            start_ms=event.at_ms,
        )

    def _close(self, run_id: str, event: Event) -> None:
        status = _STATUS.get(event.status or "", "killed")
        with self._refusal_said():
            self._connected().close_run(run_id, status=status, end_ms=event.at_ms)

    def _open_parent(self, at_ms: int) -> str:
        if self._cursor.parent_id is not None:
            return self._cursor.parent_id
        started = self._cursor.started or Event(type="run_started", at_ms=at_ms)
        parent_id = self._connected().open_run(
            run=self._journal.run,
            stage=None,
            parent_id=None,
            tags=started.tags,
            start_ms=started.at_ms,
        )
        with self._refusal_said():
            self._connected().log_params(parent_id, started.params)
        self._save(parent_id=parent_id)
        return parent_id

    def _open_child(self, event: Event) -> str:
        """Find or create the tracking run of the event's stage; it takes the event's tags."""
        stage = _stage_of(event)
        parent_id = self._open_parent(event.at_ms)
        run_id = self._connected().open_run(
            run=self._journal.run,
            stage=stage,
            parent_id=parent_id,
            tags=event.tags,
            start_ms=event.at_ms,
        )
        self._save(stage_ids=self._cursor.stage_ids | {stage: run_id})
        return run_id

    def _drain(self, stage: str) -> None:
        """Deliver the new points of a stage's segment; steps that it has are left out.

        A stage that is tried again on another machine may begin a segment of its own, and repeat
        there the steps since its checkpoint, at other times.
        """
        path = self._cursor.segments.get(stage)
        if path is None:
            return
        offset = self._cursor.segment_offsets.get(path, 0)
        points, after = self._read_points(Path(path), offset)
        last = dict(self._cursor.last_steps.get(stage, {}))
        fresh: list[MetricPoint] = []
        for point in points:
            if point.step > last.get(point.key, -1):
                fresh.append(point)
                last[point.key] = point.step
        run_id = self._cursor.stage_ids[stage]
        for start in range(0, len(fresh), _POINTS_PER_CALL):
            with self._refusal_said():
                batch = fresh[start : start + _POINTS_PER_CALL]
                self._connected().log_points(run_id, batch)
        if after != offset:
            self._save(
                segment_offsets=self._cursor.segment_offsets | {path: after},
                last_steps=self._cursor.last_steps | {stage: last},
            )

    def _log_final(self, event: Event, stage: str, run_id: str) -> None:
        """Final figures stand at the last step of the curves, where they count as the latest."""
        last = self._cursor.last_steps.get(stage, {})
        step = max(last.values(), default=0)
        points = [p for p in _points(event, step=step) if p.key not in last]
        with self._refusal_said():
            self._connected().log_points(run_id, points)

    def _log_files(self, event: Event, run_id: str) -> None:
        tracker = self._connected()
        for dataset in event.datasets:
            with self._refusal_said():
                tracker.log_dataset(run_id, **dataset)
        for folder in map(Path, event.artifacts):
            place = "" if folder.name == FILES_FOLDER else folder.name
            with self._refusal_said():
                tracker.log_folder(run_id, folder, destination=place)
        if event.register_as is not None:
            with self._refusal_said():
                tracker.register_model(
                    run_id,
                    name=event.register_as,
                    alias=_ALIAS,
                    digest=event.tags[DIGEST_TAG],
                )

    @contextlib.contextmanager
    def _refusal_said(self) -> Iterator[None]:
        """What the tracker refuses once it refuses always: it is said, and left out."""
        try:
            yield
        except UnreachableError:
            raise
        except VitrailError as error:
            self._say(f"not in the tracker: {error.what}")

    def _connected(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._factory()
        return self._tracker

    def _save(self, **changes: object) -> None:
        self._cursor = self._cursor.revise(**changes)
        self._journal.save_cursor(self._cursor)

    def _is_resting(self) -> bool:
        since = self._away_since_ms
        return since is not None and self._clock_ms() - since < _RETRY_MS

    def _rest(self, error: UnreachableError) -> None:
        if self._away_since_ms is None:
            self._say(f"{error.what}; the run goes on, and its metrics wait in its folder")
        self._away_since_ms = self._clock_ms()

    def _open_stages(self) -> tuple[list[str], bool]:
        """Stages that started and did not finish, and whether the run has ended."""
        started: dict[str, None] = {}
        ended = False
        for event, _ in self._journal.read_events(0):
            if event.type == "stage_started" and event.stage:
                started[event.stage] = None
            elif event.type == "stage_finished" and event.stage:
                started.pop(event.stage, None)
            ended = ended or event.type == "run_finished"
        return list(started), ended


class Replays(Protocol):
    """Something that can tell the tracker what is new: a `Mirror`, or several."""

    def replay(self, *, final: bool = False) -> bool:
        """True if nothing is left to tell."""
        ...


class MirrorThread:
    """Replays every few seconds beside the controller, which never waits for the tracker."""

    def __init__(
        self, mirror: Replays, *, interval_seconds: float, say: Callable[[str], None]
    ) -> None:
        """Prepare; `say` is told of a failure that nobody foresaw, which ends the replay."""
        self._mirror = mirror
        self._interval = interval_seconds
        self._say = say
        self._stop = threading.Event()
        self._delivered = False
        # A daemon, so that a server that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._loop, name="vitrail-mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, deadline_seconds: float) -> bool:
        """Deliver the rest, for at most so long; True if the tracker knows everything now."""
        self._stop.set()
        self._thread.join(deadline_seconds)
        return self._delivered

    def _loop(self) -> None:
        try:
            while not self._stop.wait(self._interval):
                self._mirror.replay()
            self._delivered = self._mirror.replay(final=True)
        except Exception as error:  # tracking must never fail a run
            self._say(f"the tracker's mirror stopped: {type(error).__name__}: {error}")


def _stage_of(event: Event) -> str:
    if event.stage is None:
        raise ValueError(f"the event {event.type} at {event.at_ms} names no stage")
    return event.stage


def _points(event: Event, *, step: int) -> list[MetricPoint]:
    return [
        MetricPoint(key=key, value=value, step=step, at_ms=event.at_ms)
        for key, value in event.metrics.items()
    ]
