"""A tracker in memory: the whole port, and a switch that takes it away."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import UnreachableError, VitrailError
from schemas.runs import MetricPoint


@dataclass
class TrackedRun:
    """What people would see of one tracking run."""

    run: str
    stage: str | None
    parent_id: str | None
    start_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[MetricPoint] = field(default_factory=list)
    datasets: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    status: str = "running"
    end_ms: int | None = None

    def steps(self, key: str) -> list[int]:
        """Steps of one metric, as they were told."""
        return [point.step for point in self.points if point.key == key]


class MemoryTracker:
    """Fulfils `pipeline.ports.Tracker`."""

    def __init__(self) -> None:
        """Hold nothing yet, and be there."""
        self.runs: dict[str, TrackedRun] = {}
        self.models: dict[tuple[str, str], str] = {}
        self.calls = 0
        self.fails_at: int | None = None
        """Number of the call that does its work and then loses the connection."""
        self.away = False

    def run_of(self, stage: str | None) -> TrackedRun:
        """The tracking run of a stage, or of the whole run."""
        (found,) = (run for run in self.runs.values() if run.stage == stage)
        return found

    def open_run(
        self,
        *,
        run: str,
        stage: str | None,
        parent_id: str | None,
        tags: dict[str, str],
        start_ms: int,
    ) -> str:
        """See the port."""
        self._arrive()
        run_id = f"{run}/{stage}"
        found = self.runs.setdefault(run_id, TrackedRun(run, stage, parent_id, start_ms))
        found.tags |= tags
        found.status = "running"
        self._leave()
        return run_id

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """See the port."""
        self._arrive()
        self.runs[run_id].params |= params
        self._leave()

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """See the port; an equal point is dropped, and a connection may break half way."""
        self._arrive()
        taken = points[: len(points) // 2 + 1] if self.calls == self.fails_at else points
        known = self.runs[run_id].points
        known.extend(point for point in taken if point not in known)
        self._leave()

    def log_dataset(self, run_id: str, *, name: str, digest: str, context: str, path: str) -> None:
        """See the port."""
        self._arrive()
        entry = {"name": name, "digest": digest, "context": context, "path": path}
        if entry not in self.runs[run_id].datasets:
            self.runs[run_id].datasets.append(entry)
        self._leave()

    def log_folder(self, run_id: str, folder: Path, *, destination: str) -> None:
        """See the port."""
        self._arrive()
        if not folder.is_dir():
            raise VitrailError(f"the folder {folder} is gone")
        for path in folder.rglob("*"):
            if path.is_file():
                name = (Path(destination) / path.relative_to(folder)).as_posix()
                self.runs[run_id].files[name] = path.read_text()
        self._leave()

    def register_model(self, run_id: str, *, name: str, alias: str, digest: str) -> None:
        """See the port."""
        self._arrive()
        self.models.setdefault((name, digest), f"{run_id}@{alias}")
        self._leave()

    def close_run(self, run_id: str, *, status: str, end_ms: int) -> None:
        """See the port."""
        self._arrive()
        self.runs[run_id].status = status
        self.runs[run_id].end_ms = end_ms
        self._leave()

    def run_url(self, run_id: str) -> str:
        """See the port."""
        return f"memory:{run_id}"

    def _arrive(self) -> None:
        if self.away:
            raise UnreachableError("the tracker is away")
        self.calls += 1

    def _leave(self) -> None:
        if self.calls == self.fails_at:
            self.fails_at = None
            raise UnreachableError("the connection broke after the work was done")
