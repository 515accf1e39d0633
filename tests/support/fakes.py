"""Whole implementations of the ports for tests: documents in memory, files in a folder."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.artifacts import (
    ArtifactFile,
    ArtifactManifest,
    Environment,
    StageRecord,
    StageResult,
    artifact_name,
)
from schemas.errors import IntegrityError
from schemas.runs import InputArtifact, StageRequest
from schemas.spec import canonical_json, digest_of


@dataclass
class FolderAttempt:
    """`Attempt`: two folders, and the key it is for."""

    path: Path
    progress: Path
    key: str


@dataclass
class MemoryStore:
    """`ArtifactStore`: attempts are folders under `root`; results, records and refs are dicts."""

    root: Path
    results: dict[tuple[str, str], StageResult] = field(default_factory=dict)
    records: dict[str, StageRecord] = field(default_factory=dict)
    manifests: dict[str, ArtifactManifest] = field(default_factory=dict)
    refs: dict[tuple[str, str], StageResult] = field(default_factory=dict)
    discarded: list[tuple[str, str]] = field(default_factory=list)
    """Artifact and reason, in order."""
    lookups: int = 0
    _locks: dict[tuple[str, str], threading.RLock] = field(default_factory=dict)
    _attempts: int = 0

    @property
    def uri(self) -> str:
        return str(self.root)

    def lookup(self, kind: str, key: str) -> StageResult | None:
        self.lookups += 1
        return self.results.get((kind, key))

    def path(self, result: StageResult) -> Path:
        return self.root / "artifacts" / result.artifact / "attempts" / result.attempt

    def local(self, result: StageResult) -> Path:
        return self.path(result)

    def progress(self, artifact: str) -> Path:
        return self.root / "artifacts" / artifact / "progress"

    def record(self, result: StageResult) -> StageRecord:
        if result.attempt not in self.records:
            raise IntegrityError(f"the record of {result.artifact} is missing")
        return self.records[result.attempt]

    def present(self, result: StageResult) -> str | None:
        return self._first_fault(result, read_all=False)

    def verify(self, result: StageResult) -> str | None:
        return self._first_fault(result, read_all=True)

    def _first_fault(self, result: StageResult, *, read_all: bool) -> str | None:
        for file in self.manifests[result.attempt].files:
            path = self.path(result) / file.path
            if not path.is_file():
                return f"{file.path} is missing"
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
                return f"{file.path} was changed"
            if read_all and _sha256(path) != file.sha256:
                return f"{file.path} has other bytes"
        return None

    def check_input(self, artifact: InputArtifact) -> str | None:
        made = [
            result for result in self.results.values() if str(self.path(result)) == artifact.path
        ]
        return self.verify(made[0]) if made else f"{artifact.artifact} is missing"

    def discard(self, result: StageResult, reason: str) -> None:
        self.results.pop((result.kind, result.key), None)
        shutil.rmtree(self.path(result).parents[1] / "progress", ignore_errors=True)
        self.discarded.append((result.artifact, reason))

    def begin(self, kind: str, key: str) -> FolderAttempt:
        self._attempts += 1
        artifact = self.root / "artifacts" / artifact_name(kind, key)
        attempt = FolderAttempt(
            artifact / "attempts" / f"a{self._attempts:03}", artifact / "progress", key
        )
        attempt.path.mkdir(parents=True)
        attempt.progress.mkdir(exist_ok=True)
        return attempt

    def hold(
        self,
        kind: str,
        key: str,
        *,
        reads: Collection[str] = (),
        stop: Callable[[], bool] | None = None,
    ) -> threading.RLock:
        return self._locks.setdefault((kind, key), threading.RLock())

    def commit(
        self, attempt: FolderAttempt, record: StageRecord, *, known_sha256: Mapping[str, str]
    ) -> StageResult:
        manifest = ArtifactManifest(files=tuple(_files(attempt.path, known_sha256)))
        result = StageResult(
            kind=record.key_record.kind,
            key=attempt.key,
            attempt=attempt.path.name,
            digest=manifest.content_digest(),
            manifest_sha256=digest_of(manifest.dump()),
            metrics=record.metrics,
            seconds=record.seconds,
            committed_at="2026-01-01T00:00:00+00:00",
        )
        self.records[result.attempt] = record
        self.manifests[result.attempt] = manifest
        return self.results.setdefault((result.kind, result.key), result)

    def get_ref(self, experiment: str, stage: str) -> StageResult | None:
        return self.refs.get((experiment, stage))

    def set_ref(self, experiment: str, stage: str, result: StageResult) -> None:
        self.refs[experiment, stage] = result


def _files(folder: Path, known_sha256: Mapping[str, str]) -> list[ArtifactFile]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("logs/"):
            found.append(
                ArtifactFile(
                    path=name,
                    size_bytes=path.stat().st_size,
                    sha256=known_sha256.get(name) or _sha256(path),
                    mtime_ns=path.stat().st_mtime_ns,
                )
            )
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class FixedProvenance:
    """`Provenance` of a machine that never changes, unless a test changes it."""

    versions: dict[str, str] = field(default_factory=dict)
    """Versions that differ from 1.0."""
    code_files: dict[str, str] = field(default_factory=lambda: {"pipeline/x.py": "0" * 64})
    """Source files that every kind uses."""
    own_code: dict[str, dict[str, str]] = field(default_factory=dict)
    """Kind -> source files that it alone uses."""

    def code_files_of(self, kind: str) -> dict[str, str]:
        return {**self.code_files, **self.own_code.get(kind, {})}

    def environment(self, kind: str) -> Environment:
        return Environment(
            python="3.11",
            platform="linux",
            cpu="test",
            hostname="localhost",
            packages=dict(self.versions),
            code_digest=digest_of(self.code_files_of(kind)),
            code_files=self.code_files_of(kind),
            git_commit=None,
            git_dirty=None,
        )

    def library_versions(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.versions.get(name, "1.0") for name in names}


def default_content(request: StageRequest) -> str:
    """What a stage writes unless a test says otherwise: a function of its key record."""
    return canonical_json(request.key_record.dump())


@dataclass
class InlineRunner:
    """`StageRunner` in this process: `wait` makes the oldest stage that was submitted."""

    store: MemoryStore
    provenance: FixedProvenance = field(default_factory=FixedProvenance)
    content: Callable[[StageRequest], str] = default_content
    """What a stage writes."""
    failures: dict[str, list[BaseException]] = field(default_factory=dict)
    """Stage -> what its next tries raise, in order."""
    newest_first: bool = False
    commits_early: bool = False
    """All that was submitted is committed before the first end is heard."""
    ran: list[str] = field(default_factory=list)
    """Every try, in order."""
    requests: dict[str, StageRequest] = field(default_factory=dict)
    most_at_once: int = 0
    closed: bool = False
    _waiting: list[StageRequest] = field(default_factory=list)

    def submit(self, request: StageRequest) -> None:
        self._waiting.append(request)
        self.requests[request.stage] = request
        self.most_at_once = max(self.most_at_once, len(self._waiting))

    def wait(
        self,
        timeout_seconds: float,  # nothing takes time here
    ) -> Sequence[tuple[StageRequest, StageResult | BaseException]]:
        if not self._waiting:
            return []
        if self.commits_early:
            for early in self._waiting:
                self._make(early)
        request = self._waiting.pop(-1 if self.newest_first else 0)
        self.ran.append(request.stage)
        failures = self.failures.get(request.stage)
        return [(request, failures.pop(0) if failures else self._make(request))]

    def close(self) -> None:
        self._waiting.clear()
        self.closed = True

    def _make(self, request: StageRequest) -> StageResult:
        kind = request.spec["kind"]
        with self.store.hold(kind, request.key):
            attempt = self.store.begin(kind, request.key)
            (attempt.path / "content.txt").write_text(self.content(request))
            record = StageRecord(
                experiment=request.experiment,
                stage=request.stage,
                key=request.key,
                key_record=request.key_record,
                spec=request.spec,
                input_artifacts={port: found.artifact for port, found in request.inputs.items()},
                environment=self.provenance.environment(kind),
                run=request.run,
                started_at="2026-01-01T00:00:00+00:00",
                seconds=1.5,
                metrics={"test/made_count": 1.0},
            )
            return self.store.commit(attempt, record, known_sha256={})
