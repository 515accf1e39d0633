"""The rows of a report, read from the artifacts of other stages."""

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pipeline.data.shards.quality import rejected_files
from pipeline.evaluation.study import label, split_name
from schemas.errors import IntegrityError
from schemas.evaluation import AccuracyReport
from schemas.manifest import (
    DATASET_FOLDER,
    MANIFEST_FILE,
    REJECTIONS_FILE,
    TOMBSTONES_FILE,
    ShardSetManifest,
)
from schemas.records import TOMBSTONES
from schemas.report import (
    TEST_COPIES_FILE,
    AccuracyRow,
    DataRow,
    MatchRow,
    RejectionRow,
    SearchReport,
    SearchRow,
    StageTestCopies,
    TestCopiesReport,
    TrainingRow,
)
from schemas.runs import InputArtifact, MetricPoint
from schemas.spec import Spec, digest_of

ACCURACY_FILE = "accuracy.json"
SEARCH_FILE = "search.json"
POINTS_FILE = "logs/metrics.jsonl"
MAX_MATCHES = 50
"""Removed images of one filter that a page lists."""

Points = dict[str, list[tuple[int, float]]]
"""Metric key -> (step, value), steps rising."""

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
            split=report.split,
            test_set=_test_set(report, it.method),
            chosen=_chosen_for(report, it.method),
            **it.dump(),
        )
        for it in report.accuracies
    )


def data_row(source: InputArtifact) -> DataRow:
    """The shard set of an artifact in one row."""
    path = Path(source.path) / DATASET_FOLDER / MANIFEST_FILE
    manifest = read_document(path, ShardSetManifest)
    removed = Counter(_tombstones(source)["reason"].to_pylist())
    return DataRow(
        stage=source.stage,
        kind=source.kind,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        num_classes=len(manifest.class_names),
        split_rows={name: split.rows for name, split in sorted(manifest.splits.items())},
        rejections=dict(sorted(manifest.rejections.items())),
        removed=dict(sorted(removed.items())),
    )


def rejection_rows(source: InputArtifact) -> tuple[RejectionRow, ...]:
    """Why files of a corpus were refused, most files first, each reason with examples."""
    path = Path(source.path) / DATASET_FOLDER / REJECTIONS_FILE
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    with pa.memory_map(str(path)) as file:
        found = rejected_files(pa.ipc.open_file(file).read_all())
    return tuple(RejectionRow(stage=source.stage, **dict(row)) for row in found)


def match_rows(source: InputArtifact) -> tuple[MatchRow, ...]:
    """The first images that a filter took out as copies, each with the image that it copies."""
    names = [name for name in MatchRow.model_fields if name != "stage"]
    copies = _tombstones(source).select(names)
    first = copies.filter(copies["matched_source"].is_valid()).slice(0, MAX_MATCHES)
    return tuple(MatchRow(stage=source.stage, **row) for row in first.to_pylist())


def test_copies_rows(source: InputArtifact) -> tuple[StageTestCopies, ...]:
    """What a filter found of each test split."""
    report = read_document(Path(source.path) / TEST_COPIES_FILE, TestCopiesReport)
    return tuple(StageTestCopies(stage=source.stage, **row.dump()) for row in report.tests)


def read_points(source: InputArtifact) -> Points:
    """The logged points of a training artifact; empty where no log stands beside it.

    A step that was logged twice (before and after a resume) counts once, the later one.
    """
    path = Path(source.path) / POINTS_FILE
    if not path.exists():
        return {}
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        point = MetricPoint.model_validate_json(line)
        found.setdefault(point.key, {})[point.step] = point.value
    return {key: sorted(points.items()) for key, points in found.items()}


def training_row(source: InputArtifact, points: Points) -> TrainingRow:
    """Where a training ended."""
    step, loss = points.get("train/loss", [(None, math.nan)])[-1]
    last_loss = loss if math.isfinite(loss) else None
    return TrainingRow(stage=source.stage, kind=source.kind, steps=step, last_loss=last_loss)


def search_rows(source: InputArtifact) -> tuple[SearchRow, ...]:
    """What a fine-tuning tried on held-out training labels; empty where it did not search."""
    path = Path(source.path) / SEARCH_FILE
    if not path.exists():
        return ()
    report = read_document(path, SearchReport)
    return tuple(
        SearchRow(stage=source.stage, chosen=index == report.chosen, **trial.dump())
        for index, trial in enumerate(report.trials)
    )


def baseline_notes(rows: Sequence[AccuracyRow]) -> tuple[str, ...]:
    """One sentence for each model that simple baselines are ahead of, on the same images.

    Variants of a matrix are compared by their means over the shared ones.
    """
    baselines = _by_base([row for row in rows if row.kind == "baseline"])
    found = []
    for name, model in _by_base([row for row in rows if row.kind == "evaluate"]).items():
        ahead = [_ahead(model, baseline_name, its) for baseline_name, its in baselines.items()]
        if any(ahead):
            found.append(f"Simple baselines are ahead of {name}: {'; '.join(filter(None, ahead))}.")
    return tuple(found)


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


def _tombstones(source: InputArtifact) -> pa.Table:
    """The removed rows of a shard set; a set that nothing was taken from has no such file."""
    path = Path(source.path) / DATASET_FOLDER / TOMBSTONES_FILE
    if not path.exists():
        return TOMBSTONES.empty_table()
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()
