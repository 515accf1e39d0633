"""Figures of a finished run, read back from its artifacts."""

from collections.abc import Iterator
from pathlib import Path

from jobs.wiring import store_at
from jobs.workspace import Workspace
from schemas.evaluation import Accuracy, AccuracyReport
from schemas.probing import PROBE_FILE, ProbeReport
from schemas.runs import RunDocument, StageOutcome

_FILES = {"evaluate": "accuracy.json", "baseline": "accuracy.json", "probe": PROBE_FILE}
"""Kind -> the document with its accuracies."""

Row = tuple[str, str, str, str, str]
"""Stage, method, accuracy, interval, correct answers."""


def artifact_path(stage: StageOutcome, workspace: Workspace) -> Path | None:
    """Folder of what a stage made or reused; None if it has nothing."""
    if stage.key is None or stage.status not in {"ran", "reused"}:
        return None
    store = store_at(workspace.store)
    result = store.lookup(stage.kind, stage.key)
    return None if result is None else store.local(result)


def accuracy_rows(document: RunDocument, workspace: Workspace) -> list[Row]:
    """One row for each accuracy that the run's stages measured."""
    return list(_rows(document, workspace))


def _rows(document: RunDocument, workspace: Workspace) -> Iterator[Row]:
    for stage in document.stages:
        file = _FILES.get(stage.kind)
        folder = artifact_path(stage, workspace) if file else None
        if file is None or folder is None or not (folder / file).is_file():
            continue
        data = (folder / file).read_bytes()
        if stage.kind == "probe":
            yield from _probe_rows(stage.name, ProbeReport.model_validate_json(data))
        else:
            report = AccuracyReport.model_validate_json(data)
            yield from (_row(stage.name, found) for found in report.accuracies)


def _probe_rows(stage: str, report: ProbeReport) -> Iterator[Row]:
    """A mean over draws has no number of correct answers, and an interval between draws."""
    for mean in report.few_shot_means:
        interval = "-"
        if mean.low_ratio is not None and mean.high_ratio is not None:
            interval = _interval(mean.low_ratio, mean.high_ratio)
        method = f"few shot {mean.shots}, mean of {mean.draws}"
        yield stage, method, f"{100 * mean.mean_ratio:.1f} %", interval, "-"
    for found in report.accuracies:
        yield _row(stage, found)


def _row(stage: str, found: Accuracy) -> Row:
    return (
        stage,
        found.method.replace("_", " "),
        f"{100 * found.top1_ratio:.1f} %",
        _interval(found.low_ratio, found.high_ratio),
        f"{found.correct} / {found.total}",
    )


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} - {100 * high:.1f} %"
