"""Figures of a finished run, read back from its artifacts."""

from collections.abc import Iterator
from pathlib import Path

from jobs.wiring import store_at
from jobs.workspace import Workspace
from schemas.evaluation import AccuracyReport
from schemas.runs import RunDocument, StageOutcome

_MEASURED = {"evaluate", "baseline"}


def artifact_path(stage: StageOutcome, workspace: Workspace) -> Path | None:
    """Folder of what a stage made or reused; None if it has nothing."""
    if stage.key is None or stage.status not in {"ran", "reused"}:
        return None
    store = store_at(workspace.store)
    result = store.lookup(stage.kind, stage.key)
    return None if result is None else store.path(result)


def accuracy_rows(
    document: RunDocument, workspace: Workspace
) -> list[tuple[str, str, str, str, str]]:
    """One row for each accuracy that the run's stages measured."""
    return list(_rows(document, workspace))


def _rows(document: RunDocument, workspace: Workspace) -> Iterator[tuple[str, str, str, str, str]]:
    for stage in document.stages:
        if stage.kind not in _MEASURED:
            continue
        folder = artifact_path(stage, workspace)
        file = None if folder is None else folder / "accuracy.json"
        if file is None or not file.is_file():
            continue
        for found in AccuracyReport.model_validate_json(file.read_bytes()).accuracies:
            yield (
                stage.name,
                found.method.replace("_", " "),
                f"{100 * found.top1_ratio:.1f} %",
                f"{100 * found.low_ratio:.1f} - {100 * found.high_ratio:.1f} %",
                f"{found.correct} / {found.total}",
            )
