"""Telling the tracker of runs: this one, and what earlier ones could not tell."""

import time
from collections.abc import Callable

from infra.metric_segments import read_points
from infra.run_folder import RunFolder, list_runs, owner_alive
from jobs.wiring import tracker
from jobs.workspace import Workspace
from pipeline.dag.mirror import Mirror
from schemas.errors import VitrailError
from schemas.runs import RunState


class AfterOthers:
    """The run's mirror, once the runs before it have been told to the end.

    First, because a run that died and this one may share a training's curve, which is still short.
    """

    def __init__(self, mirror: Mirror, catch_up: Callable[[], None]) -> None:
        """Replay `mirror`; `catch_up` is called before, once."""
        self._mirror = mirror
        self._catch_up: Callable[[], None] | None = catch_up

    def replay(self, *, final: bool = False) -> bool:
        """True if nothing of this run is left to tell."""
        if self._catch_up is not None:
            self._catch_up()
            self._catch_up = None
        return self._mirror.replay(final=final)


def mirror_of(
    folder: RunFolder, *, workspace: Workspace, tracking_uri: str, say: Callable[[str], None]
) -> Mirror:
    """The mirror of a run, at the tracker that the run began with.

    Raises:
        IntegrityError: If the state of the run cannot be read.
    """
    state = folder.read_state()
    uri = state.tracking_uri or tracking_uri
    return Mirror(
        folder,
        lambda: tracker(uri, workspace=workspace.root, experiment=state.experiment),
        read_points=read_points,
        clock_ms=lambda: time.time_ns() // 1_000_000,
        say=say,
    )


def catch_up(
    workspace: Workspace, *, tracking_uri: str, deadline_seconds: float, say: Callable[[str], None]
) -> None:
    """Tell the tracker what earlier runs could not, and end the runs whose process died.

    A run whose files cannot be read is said and left out: it must not keep the others waiting.
    """
    deadline = time.monotonic() + deadline_seconds
    for state in list_runs(workspace.runs):
        if time.monotonic() > deadline:
            return
        try:
            told = _tell(state, workspace, tracking_uri)
        except (VitrailError, OSError, UnicodeDecodeError) as error:
            what = error.what if isinstance(error, VitrailError) else str(error)
            say(f"the tracker is not told of the earlier run {state.run}: {what}")
            continue
        if not told:
            return  # the tracker is away: the next run tries again


def _tell(state: RunState, workspace: Workspace, tracking_uri: str) -> bool:
    """False if the tracker is away."""
    folder = RunFolder(workspace.runs / state.run)
    dead = state.status == "running" and owner_alive(state) is False
    if dead:
        folder.write_state(state.revise(status="killed"))
    if not dead and (state.status == "running" or not _is_behind(folder)):
        return True
    mirror = mirror_of(
        folder, workspace=workspace, tracking_uri=tracking_uri, say=lambda _text: None
    )
    try:
        return mirror.close_orphan() if dead else mirror.replay(final=True)
    finally:
        folder.close()


def _is_behind(folder: RunFolder) -> bool:
    events = folder.events_path
    return events.is_file() and folder.load_cursor().event_offset < events.stat().st_size
