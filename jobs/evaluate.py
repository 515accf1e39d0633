"""Stage `evaluate`: a saved model over every image of a split."""

from pathlib import Path

import numpy as np

from jobs.stage import StageOutput, StageTools
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation import figures
from pipeline.evaluation.classify import (
    SHOWN_IMAGES,
    Predictions,
    check_same_classes,
    classify,
    write_predictions,
)
from pipeline.evaluation.metrics import accuracy_report, mean_nll
from pipeline.evaluation.tables import ACCURACY_FILE
from pipeline.model.saved import load_model
from schemas.checkpoint import MODEL_FOLDER
from schemas.evaluation import AccuracyReport, EvaluateSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import StageRequest
from schemas.spec import canonical_json

METHOD = "model"
PREDICTIONS_FILE = "predictions.arrow"


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Classify the split; write predictions, accuracy and figures into the attempt."""
    spec = EvaluateSpec.parse(request.spec)
    data = request.inputs["data"]
    model, saved = load_model(Path(request.inputs["model"].path) / MODEL_FOLDER)
    shards = ShardSet.open(Path(data.path) / DATASET_FOLDER)
    check_same_classes(saved.class_names, shards.class_names)
    split_name = data.split or EvaluateSpec.default_splits["data"]
    split = shards.split(split_name)
    tools.say(f"classifying {split.num_rows} images of {data.stage}@{split_name}")
    found = classify(model, split, batch_samples=spec.batch_samples, threads=spec.threads)
    report = accuracy_report(
        found.labels,
        {METHOD: found.predicted},
        split=split_name,
        class_names=shards.class_names,
        chosen={},
    )
    _write(tools.attempt.path, found, report)
    nll = mean_nll(found.logits, found.labels, saved.probabilities)
    metrics = _metrics(report) | {f"{split_name}/nll": nll}
    tools.say(f"top-1 {metrics[f'{split_name}/top1_ratio']:.1%} of {split.num_rows} images")
    return StageOutput(metrics=metrics)


def _write(folder: Path, found: Predictions, report: AccuracyReport) -> None:
    write_predictions(folder / PREDICTIONS_FILE, found)
    (folder / ACCURACY_FILE).write_text(canonical_json(report.dump()) + "\n")
    figures.draw_confusion(
        folder / "figures" / "confusion.png",
        np.array(report.confusion[METHOD]),
        report.class_names,
    )
    figures.draw_predictions(
        folder / "figures" / "predictions.png",
        found.shown,
        label_M=found.labels[:SHOWN_IMAGES],
        predicted_M=found.predicted[:SHOWN_IMAGES],
        class_names=report.class_names,
    )


def _metrics(report: AccuracyReport) -> dict[str, float]:
    (accuracy,) = report.accuracies
    return {
        f"{report.split}/top1_ratio": accuracy.top1_ratio,
        f"{report.split}/top1_low_ratio": accuracy.low_ratio,
        f"{report.split}/top1_high_ratio": accuracy.high_ratio,
        f"{report.split}/images_count": float(accuracy.total),
    }
