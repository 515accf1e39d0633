"""Runs one stage entry point in this process, in a folder of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.serial_pool import NeverStop, SerialPool
from jobs.stage import StageEntry, StageOutput, StageTools
from jobs.stage_sources import fingerprint
from schemas.artifacts import KeyRecord
from schemas.runs import InputArtifact, StageRequest
from schemas.stage import StageSpec


@dataclass
class FolderAttempt:
    """An attempt that is never committed."""

    path: Path
    progress: Path


@dataclass
class MemoryLog:
    """Keeps the points that a stage logs."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def log(self, points: dict[str, float], *, step: int) -> None:
        self.points.append((step, points))


@dataclass(frozen=True)
class StageRun:
    """What a stage made, ready to be another's input."""

    output: StageOutput
    artifact: InputArtifact
    said: list[str]

    @property
    def path(self) -> Path:
        """Folder of the files."""
        return Path(self.artifact.path)

    def at(self, split: str | None) -> InputArtifact:
        """The artifact as `NAME@SPLIT` names it."""
        return self.artifact.revise(split=split)


def run_stage(
    entry: StageEntry,
    spec: StageSpec,
    folder: Path,
    *,
    inputs: Mapping[str, InputArtifact] | None = None,
    seed: int = 0,
) -> StageRun:
    """Run `entry` below `folder`; the stage is called as the folder is."""
    attempt = FolderAttempt(folder / "attempt", folder / "progress")
    attempt.path.mkdir(parents=True)
    attempt.progress.mkdir()
    request = _request(spec, folder, inputs=inputs or {}, seed=seed)
    said: list[str] = []
    say: Callable[[str], None] = said.append
    tools = StageTools(
        attempt=attempt, pool=SerialPool(), stop=NeverStop(), metrics=MemoryLog(), say=say
    )
    output = entry(request, tools)
    return StageRun(output, _as_input(request, attempt.path, output.metrics), said)


def _request(
    spec: StageSpec, folder: Path, *, inputs: Mapping[str, InputArtifact], seed: int
) -> StageRequest:
    fields: dict[str, Any] = spec.dump()
    source: Any = spec.outside()
    origin = {"source": fingerprint(source)} if source is not None else {}
    record = KeyRecord(
        kind=fields["kind"],
        revision=1,
        fields=fields,
        inputs=origin | {port: it.digest for port, it in inputs.items()},
        libraries={},
        seed=seed,
    )
    return StageRequest(
        experiment="tests",
        run="run",
        stage=folder.name,
        spec=fields,
        seed=seed,
        key=record.key(),
        key_record=record,
        inputs=dict(inputs),
        store=str(folder),
        pause_path=str(folder / "pause"),
    )


def _as_input(request: StageRequest, path: Path, metrics: dict[str, float]) -> InputArtifact:
    return InputArtifact(
        stage=request.stage,
        kind=request.spec["kind"],
        artifact=f"{request.spec['kind']}-{request.key[:12]}",
        digest=request.key,
        path=str(path),
        split=None,
        metrics=metrics,
    )
