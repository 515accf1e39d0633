"""The rows of a report, read from the artifacts of other stages."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.evaluation.study import label, split_name
from schemas.errors import IntegrityError
from schemas.evaluation import AccuracyReport
from schemas.report import AccuracyRow
from schemas.report_page import Note
from schemas.runs import InputArtifact
from schemas.spec import Spec, digest_of

ACCURACY_FILE = "accuracy.json"

S = TypeVar("S", bound=Spec)


def read_document(path: Path, kind: type[S]) -> S:
    """A JSON document of another stage.

    Raises:
        IntegrityError: If it is missing or is not what its schema says.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} does not hold a readable {kind.__name__}: {error}",
            hint="vitrail run SPEC --force STAGE, with the stage that made it",
        ) from error


def accuracy_rows(source: InputArtifact) -> tuple[AccuracyRow, ...]:
    """One row for each method of an `evaluate` or `baseline` artifact."""
    report = read_document(Path(source.path) / ACCURACY_FILE, AccuracyReport)
    return tuple(
        AccuracyRow(
            stage=source.stage,
            kind=source.kind,
            artifact=source.artifact,
            place=place,
            split=report.split,
            test_set=_test_set(report, it.method),
            chosen=_chosen_for(report, it.method),
            **it.dump(),
        )
        for place, it in enumerate(report.accuracies)
    )


def baseline_notes(rows: Sequence[AccuracyRow]) -> tuple[Note, ...]:
    """One sentence for each model that simple baselines are ahead of, on the same images.

    Variants of a matrix are compared by their means over the shared ones.
    """
    baselines = _by_base([row for row in rows if row.kind == "baseline"])
    models = _by_base([row for row in rows if row.kind == "evaluate"])
    return tuple(
        note
        for name, model in models.items()
        if (note := _ahead_note(name, model, baselines)) is not None
    )


def _ahead_note(
    name: str, model: Sequence[AccuracyRow], baselines: dict[str, list[AccuracyRow]]
) -> Note | None:
    said, artifacts = [], [row.artifact for row in model]
    for baseline_name, its in baselines.items():
        sentence = _ahead(model, baseline_name, its)
        if sentence:
            said.append(sentence)
            artifacts += [row.artifact for row in its]
    if not said:
        return None
    return Note(
        text=f"Simple baselines are ahead of {name}: {'; '.join(said)}.",
        artifacts=tuple(dict.fromkeys(artifacts)),
    )


def _ahead(model: Sequence[AccuracyRow], name: str, baseline: Sequence[AccuracyRow]) -> str:
    """What is to be said of a baseline that is ahead of the model; empty where it is not."""
    pairs = [(ours, its) for ours in model for its in baseline if _comparable(ours, its)]
    if not pairs:
        return ""
    model_mean = statistics.fmean(ours.top1_ratio for ours, _ in pairs)
    baseline_mean = statistics.fmean(its.top1_ratio for _, its in pairs)
    if baseline_mean <= model_mean:
        return ""
    over = f", means over {len(pairs)} variants" if len(pairs) > 1 else ""
    return (
        f"{name.replace('_', ' ')} with {baseline_mean:.1%} against {model_mean:.1%} "
        f"of the {pairs[0][1].total} images of split {pairs[0][1].split}{over}"
    )


def _by_base(rows: Sequence[AccuracyRow]) -> dict[str, list[AccuracyRow]]:
    grouped: dict[str, list[AccuracyRow]] = {}
    for row in rows:
        grouped.setdefault(label(split_name(row.stage).stage, row.method), []).append(row)
    return grouped


def _comparable(first: AccuracyRow, second: AccuracyRow) -> bool:
    """Same images, and the same variant where both have one."""
    variants = {split_name(row.stage).variant for row in (first, second)} - {None}
    return first.test_set == second.test_set and len(variants) < 2


def _test_set(report: AccuracyReport, method: str) -> str:
    """Digest of what was measured on; the rows of a confusion matrix sum to the true counts."""
    counts = [sum(row) for row in report.confusion[method]]
    return digest_of([report.split, list(report.class_names), counts])


def _chosen_for(report: AccuracyReport, method: str) -> dict[str, float]:
    prefix = f"{method}."
    return {
        name.removeprefix(prefix): value
        for name, value in report.chosen.items()
        if name.startswith(prefix)
    }
