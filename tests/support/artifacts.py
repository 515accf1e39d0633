"""Small artifacts for tests of the store."""

from pathlib import Path

from infra.storage import LocalStore
from schemas.artifacts import Environment, KeyRecord, StageRecord, StageResult

KIND = "evaluate"


def key_record(number: int = 0) -> KeyRecord:
    """The key record of some work; another number is other work."""
    return KeyRecord(
        kind=KIND, revision=1, fields={"number": number}, inputs={}, libraries={}, seed=None
    )


def stage_record(number: int = 0) -> StageRecord:
    """The record that goes with `key_record(number)`."""
    work = key_record(number)
    environment = Environment(
        python="3.11",
        platform="test",
        cpu="test",
        hostname="test",
        packages={},
        code_digest="0" * 64,
        code_files={},
        git_commit=None,
        git_dirty=None,
    )
    return StageRecord(
        experiment="tests",
        stage="accuracy",
        key=work.key(),
        key_record=work,
        spec={"kind": KIND},
        input_artifacts={},
        environment=environment,
        run="run",
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        metrics={"test/top1_ratio": 0.5},
    )


def make_artifact(store: LocalStore, number: int = 0, content: str = "content") -> StageResult:
    """Write and commit an artifact of two files and a log."""
    record = stage_record(number)
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path, content)
    return store.commit(attempt, record, known_sha256={})


def write_files(folder: Path, content: str = "content") -> None:
    """Two content files, one of them in a folder, and a log."""
    (folder / "inner").mkdir()
    (folder / "logs").mkdir()
    (folder / "report.json").write_text(content)
    (folder / "inner" / "weights.bin").write_bytes(content.encode() * 1000)
    (folder / "logs" / "log.txt").write_text("said")
