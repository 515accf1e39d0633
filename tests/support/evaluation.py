"""Small artifacts of other stages, written as those stages write them, for the report to read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.staging import write_table
from pipeline.evaluation.figures import draw_confusion, write_notes
from pipeline.evaluation.metrics import accuracy_report, measure, share
from schemas.comparison import (
    COMPARISON_FILE,
    ComparedModel,
    ComparedPair,
    ComparisonReport,
)
from schemas.evaluation import (
    AccuracyReport,
    Calibration,
    LabelSetFigures,
    ModelFigures,
    SizeFigures,
)
from schemas.interpret import INTERPRET_FILE, Absent, Attention, InterpretReport
from schemas.manifest import (
    DATASET_FOLDER,
    MANIFEST_FILE,
    REJECTIONS_FILE,
    TOMBSTONES_FILE,
    ShardSetManifest,
    SplitEntry,
    TombstoneEntry,
)
from schemas.probing import PROBE_FILE, FewShotMean, FewShotResult, ProbeReport
from schemas.records import REJECTIONS, TOMBSTONES
from schemas.report import TEST_COPIES_FILE, FigureNote, TestCopiesReport, TestCopiesRow
from schemas.robustness_report import (
    ROBUSTNESS_FILE,
    AbsentTest,
    CorruptionError,
    MeasuredModel,
    RobustnessCurve,
    RobustnessPoint,
    RobustnessReport,
)
from schemas.runs import InputArtifact
from schemas.spec import Spec, canonical_json, digest_of

CLASSES = ("cat", "dog")


def artifact(folder: Path, stage: str, kind: str) -> InputArtifact:
    """An empty artifact in its own folder below `folder`."""
    path = folder / stage
    path.mkdir(parents=True)
    return InputArtifact(
        stage=stage,
        kind=kind,
        artifact=f"{kind}-{digest_of(stage)[:12]}",
        digest=digest_of(stage),
        path=str(path),
        split=None,
        metrics={},
    )


def measured(
    folder: Path, stage: str, kind: str, *, correct: Mapping[str, int], total: int = 100
) -> InputArtifact:
    """An `evaluate` or `baseline` artifact; `correct` maps methods to right answers of `total`."""
    made = artifact(folder, stage, kind)
    labels = np.arange(total) % 2
    right = {name: np.arange(total) < count for name, count in correct.items()}
    report = accuracy_report(
        labels,
        {name: np.where(it, labels, 1 - labels) for name, it in right.items()},
        split="test",
        class_names=CLASSES,
        chosen={"logistic_regression.C": 0.125} if "logistic_regression" in correct else {},
    )
    if kind == "evaluate":
        report = report.revise(model=_figures_of(report))
    _write(Path(made.path) / "accuracy.json", report)
    if kind == "evaluate":
        confusion = np.array(report.confusion["model"])
        draw_confusion(Path(made.path) / "figures" / "confusion.png", confusion, CLASSES)
    return made


def probed(folder: Path, stage: str) -> InputArtifact:
    """A `probe` artifact: two draws of one shot, and nearest neighbours."""
    made = artifact(folder, stage, "probe")
    labels = np.arange(100) % 2
    answers = {
        right: np.where(np.arange(100) < right, labels, 1 - labels) for right in (60, 70, 90)
    }
    shots = tuple(
        FewShotResult(
            shots=1, draw=draw, train_images=2, accuracy=measure("few_shot", labels, answers[right])
        )
        for draw, right in enumerate((60, 70))
    )
    mean = FewShotMean(
        shots=1, draws=2, mean_ratio=0.65, std_ratio=0.07, low_ratio=0.1, high_ratio=1.0
    )
    report = ProbeReport(
        split="test",
        class_names=CLASSES,
        class_counts=(50, 50),
        train_images=40,
        few_shot=shots,
        few_shot_means=(mean,),
        accuracies=(measure("knn_20", labels, answers[90]),),
        chosen={"logistic_regression.C": 0.25},
    )
    _write(Path(made.path) / PROBE_FILE, report)
    return made


def compared(folder: Path, stage: str) -> InputArtifact:
    """A `compare` artifact of two models that are told apart."""
    made = artifact(folder, stage, "compare")
    models = tuple(
        ComparedModel(name=name, correct=right, top1_ratio=right / 100, low_ratio=0, high_ratio=1)
        for name, right in (("transfer", 93), ("scratch", 81))
    )
    pair = ComparedPair(
        first="transfer",
        second="scratch",
        only_first_correct=15,
        only_second_correct=3,
        difference_ratio=0.12,
        low_ratio=0.05,
        high_ratio=0.19,
        mcnemar_p=0.0075,
        mcnemar_mid_p=0.0045,
        holm_p=0.0075,
    )
    report = ComparisonReport(images=100, resamples=1000, seed=1, models=models, pairs=(pair,))
    _write(Path(made.path) / COMPARISON_FILE, report)
    return made


def explained(folder: Path, stage: str) -> InputArtifact:
    """An `interpret` artifact of a model of two layers and two heads, without positions."""
    made = artifact(folder, stage, "interpret")
    report = InterpretReport(
        split="test",
        image_px=(8, 8),
        class_names=CLASSES,
        shown=(),
        attention=Attention(
            images=4,
            patch_px=(4.0, 4.0),
            layers=("block 1", "block 2"),
            distances_px=((1.0, 2.0), (3.0, 3.5)),
            uniform_distances_px=(2.7, 2.7),
            entropies=((0.9, 0.7), (0.5, 0.25)),
            leading_ratios=((0.0, 0.25), (0.5, 0.5)),
        ),
        absent=(Absent(section="positions", reason="it has <none>"),),
    )
    _write(Path(made.path) / INTERPRET_FILE, report)
    return made


def shaken(folder: Path, stage: str) -> InputArtifact:
    """A `robustness` artifact of one model: a curve of two points, and corruptions."""
    made = artifact(folder, stage, "robustness")
    labels = np.arange(100) % 2
    points = tuple(
        RobustnessPoint(
            x=x,
            label=f"{x:g} %",
            images=100,
            mean=mean,
            low=0,
            high=1,
            draws=(mean,),
            columns=("a",),
        )
        for x, mean in ((10.0, 0.8), (90.0, 0.3))
    )
    report = RobustnessReport(
        data="pets",
        split="test",
        images=100,
        seed=1,
        guide=None,
        tests=(),
        models=(
            MeasuredModel(
                stage="transfer",
                digest="0" * 64,
                type="vit",
                image_px=(8, 8),
                clean=measure("model", labels, labels),
                answers="transfer.arrow",
                column="clean",
                passes_per_image=21.0,
            ),
        ),
        curves=(
            RobustnessCurve(
                test="patch_drop",
                variant="random, 2x2",
                model="transfer",
                measure="top1_ratio",
                axis="cells dropped (%)",
                points=points,
            ),
        ),
        corruptions=(
            CorruptionError(
                model="transfer",
                errors={"fog": 0.4},
                mean_error=0.4,
                relative_to=None,
                mce_ratio=None,
            ),
        ),
        absent=(AbsentTest(test="corruption", model=None, what="frost", reason="no photographs"),),
    )
    _write(Path(made.path) / ROBUSTNESS_FILE, report)
    return made


def noted(source: InputArtifact, *notes: FigureNote) -> None:
    """Say what figures of an artifact show."""
    write_notes(Path(source.path), *notes)


def _figures_of(report: AccuracyReport) -> ModelFigures:
    """What else an evaluation says; the numbers are made up but for the shares."""
    found = report.accuracies[0]
    top1 = share(found.correct, found.total)
    size = SizeFigures(image_px=(8, 12), top1=top1, nll=0.4321)
    return ModelFigures(
        probabilities="softmax",
        top1=top1,
        top5=None,
        class_mean_ratio=0.9,
        nll=0.1234,
        brier=0.2345,
        calibration=Calibration(ece_ratio=0.034, bins=()),
        label_sets=LabelSetFigures(
            unknown_count=1, unknown_names=("x",), top1=top1, left_out=7, unnamed=3
        ),
        sizes=(size,),
    )


def trained(
    folder: Path, stage: str, kind: str, *, losses: Sequence[tuple[int, float]]
) -> InputArtifact:
    """A training artifact with its log; no log where `losses` is empty."""
    made = artifact(folder, stage, kind)
    points = [("train/loss", step, value) for step, value in losses]
    points += [("train/learning_rate", step, 1e-3 / (1 + step)) for step, _ in losses]
    if points:
        path = Path(made.path) / "logs" / "metrics.jsonl"
        path.parent.mkdir()
        lines = [
            json.dumps({"key": key, "value": value, "step": step, "at_ms": step})
            for key, step, value in points
        ]
        path.write_text("\n".join(lines) + "\n")
    return made


def shard_set(
    folder: Path,
    stage: str,
    *,
    rejections: Mapping[str, int] | None = None,
    removed: Sequence[tuple[str, str]] = (),
) -> InputArtifact:
    """A data artifact without its shards; `removed` holds pairs of (source, matched source)."""
    made = artifact(folder, stage, "filter" if removed else "ingest")
    dataset = Path(made.path) / DATASET_FOLDER
    dataset.mkdir()
    if removed:
        _write_tombstones(dataset / TOMBSTONES_FILE, removed)
        count = len(removed)
        row = TestCopiesRow(test_set="pets@test", found=count, images=100, removed=count)
        _write(Path(made.path) / TEST_COPIES_FILE, TestCopiesReport(tests=(row,)))
    manifest = ShardSetManifest(
        record_version=1,
        order_version=1,
        transform={},
        class_names=CLASSES,
        splits={"train": SplitEntry(rows=321, shards=1), "test": SplitEntry(rows=123, shards=1)},
        num_shards=2,
        num_rows=444 + len(removed),
        num_bytes=1,
        shard_table_sha256="0" * 64,
        rejections=dict(rejections or {}),
        rejections_sha256="0" * 64,
        tombstones=TombstoneEntry(sha256="0" * 64, rows=len(removed)) if removed else None,
    )
    _write(dataset / MANIFEST_FILE, manifest)
    rows = [
        {"source": f"{number}.jpg", "reason": reason, "message": f"<it> is {reason}"}
        for reason, count in (rejections or {}).items()
        for number in range(count)
    ]
    write_table(dataset / REJECTIONS_FILE, pa.Table.from_pylist(rows, schema=REJECTIONS))
    return made


def _write(path: Path, document: Spec) -> None:
    path.write_text(canonical_json(document.dump()) + "\n")


def _write_tombstones(path: Path, removed: Sequence[tuple[str, str]]) -> None:
    rows = [
        {
            "uid": bytes(16),
            "split": "train",
            "shard": "a.arrow",
            "row": index,
            "source": source,
            "reason": "exact_copy",
            "matched_set": "pets@test",
            "matched_uid": bytes(16),
            "matched_source": matched,
            "hamming_bits": 0,
            "thumbnail_difference": 0.0,
        }
        for index, (source, matched) in enumerate(removed)
    ]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TOMBSTONES) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=TOMBSTONES))
