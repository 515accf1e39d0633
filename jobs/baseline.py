"""Stage `baseline`: simple methods on raw pixels, learned on `train`, measured on `test`."""

from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.baselines import answer, load_pixels
from pipeline.evaluation.metrics import accuracy_report
from pipeline.evaluation.tables import ACCURACY_FILE
from schemas.evaluation import Accuracy, BaselineSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import StageRequest
from schemas.spec import canonical_json

_LOADER_THREADS = 1
_TRAIN, _TEST = "train", "test"


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Fit each method of the spec and write `accuracy.json` into the attempt."""
    spec = BaselineSpec.parse(request.spec)
    shards = ShardSet.open(Path(request.inputs["data"].path) / DATASET_FOLDER)
    train, train_labels = load_pixels(
        shards.split(_TRAIN), image_px=spec.image_px, threads=_LOADER_THREADS
    )
    test, test_labels = load_pixels(
        shards.split(_TEST), image_px=spec.image_px, threads=_LOADER_THREADS
    )
    found = {}
    for method in spec.methods:
        tools.say(f"{method}: {len(train_labels)} training images, {len(test_labels)} test images")
        found[method] = answer(method, train, label_N=train_labels, test_MF=test, seed=request.seed)
    report = accuracy_report(
        test_labels,
        {method: answers.predicted for method, answers in found.items()},
        split=_TEST,
        class_names=shards.class_names,
        chosen={
            f"{method}.{name}": value
            for method, answers in found.items()
            for name, value in answers.chosen.items()
        },
    )
    (tools.attempt.path / ACCURACY_FILE).write_text(canonical_json(report.dump()) + "\n")
    metrics = {"baseline/images_count": float(len(test_labels))}
    for accuracy in report.accuracies:
        metrics |= _metrics(accuracy)
    return StageOutput(metrics=metrics)


def _metrics(accuracy: Accuracy) -> dict[str, float]:
    prefix = f"baseline/{accuracy.method}"
    return {
        f"{prefix}_top1_ratio": accuracy.top1_ratio,
        f"{prefix}_top1_low_ratio": accuracy.low_ratio,
        f"{prefix}_top1_high_ratio": accuracy.high_ratio,
    }
