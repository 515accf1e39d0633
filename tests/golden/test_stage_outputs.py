"""One golden output for each stage kind that computes something.

A value here fails when the meaning of a kind has changed. Then the kind's `revision` is raised in
`schemas/`, CHANGELOG says so under "Changes stage keys", and the new value is written here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import (
    append,
    baseline,
    compare,
    evaluate,
    features,
    import_weights,
    ingest,
    interpret,
    probe,
    remove,
    robustness,
    train,
)
from jobs import filter as filtering
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.features import open_features
from pipeline.model.saved import load_model
from schemas.comparison import COMPARISON_FILE, CompareSpec, ComparisonReport
from schemas.curation import AppendSpec, FilterSpec, RemoveSpec
from schemas.data import IngestSpec
from schemas.evaluation import AccuracyReport, BaselineSpec, EvaluateSpec
from schemas.interchange import ImportSpec
from schemas.interpret import InterpretReport, InterpretSpec
from schemas.manifest import DATASET_FOLDER
from schemas.probing import (
    FEATURES_FILE,
    PROBE_FILE,
    FeaturesDocument,
    FeaturesSpec,
    ProbeReport,
    ProbeSpec,
)
from schemas.robustness import RobustnessSpec
from schemas.robustness_report import RobustnessReport
from schemas.training import FinetuneSpec, PretrainSpec
from tests.support.evaluation import artifact
from tests.support.predictions import write_answers
from tests.support.stages import StageRun, run_stage

LOSS_TOLERANCE = 1e-4
"""Kinds of CPU differ in the last bits, and 12 steps of training carry them on."""
pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

DIGITS = IngestSpec.parse(
    {
        "source": {"type": "sklearn", "name": "digits"},
        "select": {"classes": ["0", "1", "2"], "per_class": {"train": 40}},
        "split": {"test_ratio": 0.2},
        "image": {"encoding": "png"},
    }
)
TRAINING: dict[str, Any] = {
    "data": "digits",
    "augment": {"crop": "inception", "flip": True},
    "optim": {"peak_lr": 3e-3, "warmup_steps": 2},
    "batch": {"global_samples": 24},
    "duration": {"steps": 12},
    "resources": {"engine": "torch"},
}
BLOCK = "Transformer/encoderblock_0/"
ATTENTION = "MultiHeadDotProductAttention_0/"
MODEL = {"width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 32, "patch_px": 4, "image_px": 8}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_stage(ingest.run, DIGITS, tmp_path_factory.mktemp("golden") / "digits")


@pytest.fixture(scope="module")
def pretrained(digits: StageRun, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    spec = PretrainSpec.parse({**TRAINING, "model": MODEL})
    inputs = {"data": digits.at("train")}
    folder = tmp_path_factory.mktemp("golden") / "pretrained"
    return run_stage(train.run, spec, folder, inputs=inputs, seed=3)


def test_ingest(digits: StageRun) -> None:
    data = ShardSet.open(digits.path / DATASET_FOLDER)
    assert {name: entry.rows for name, entry in data.manifest.splits.items()} == GOLDEN["splits"]
    first = data.split("train").row(0)
    assert first.source == GOLDEN["first"]
    assert first.uid.hex() == GOLDEN["first_uid"]


def test_filter(digits: StageRun, tmp_path: Path) -> None:
    fewer = DIGITS.select.revise(per_class={"train": 20}, seed=1)
    other = run_stage(ingest.run, DIGITS.revise(select=fewer), tmp_path / "other")
    spec = FilterSpec.parse({"data": "digits", "against": ["other@train"]})
    inputs = {"data": digits.at("train"), "against[0]": other.at("train")}
    cleaned = run_stage(filtering.run, spec, tmp_path / "clean", inputs=inputs)
    left = ShardSet.open(cleaned.path / DATASET_FOLDER).manifest.splits["train"].rows
    assert (cleaned.output.metrics["filter/removed_exact_copy_count"], left) == GOLDEN["filter"]


def test_append(digits: StageRun, tmp_path: Path) -> None:
    more = DIGITS.select.revise(classes=("2", "3"), per_class={"train": 30}, seed=2)
    spec = AppendSpec.parse({**DIGITS.revise(select=more).dump(), "kind": "append", "to": "digits"})
    grown = run_stage(append.run, spec, tmp_path / "grown", inputs={"to": digits.at(None)})
    data = ShardSet.open(grown.path / DATASET_FOLDER)
    split = data.split("train")
    assert (data.manifest.rejections, split.num_rows) == GOLDEN["append"]
    assert split.row(split.num_rows - 1).source == GOLDEN["last_appended"]


def test_remove(digits: StageRun, tmp_path: Path) -> None:
    spec = RemoveSpec(data="digits", uids=(GOLDEN["first_uid"],))
    left = run_stage(remove.run, spec, tmp_path / "left", inputs={"data": digits.at(None)})
    first = ShardSet.open(left.path / DATASET_FOLDER).split("train").row(0)
    assert first.source == GOLDEN["second"]


def test_pretrain(pretrained: StageRun) -> None:
    assert pretrained.output.metrics["train/loss"] == pytest.approx(
        GOLDEN["pretrain_loss"], abs=LOSS_TOLERANCE
    )


@pytest.mark.parametrize("objective", ["masked_patch", "mae"])
def test_pretrain_without_labels(objective: str, digits: StageRun, tmp_path: Path) -> None:
    spec = PretrainSpec.parse({**TRAINING, "model": MODEL, "objective": {"type": objective}})
    made = run_stage(train.run, spec, tmp_path / "pre", inputs={"data": digits.at("train")}, seed=3)
    assert made.output.metrics["train/loss"] == pytest.approx(
        GOLDEN[f"{objective}_loss"], abs=LOSS_TOLERANCE
    )


def test_finetune_and_evaluate(digits: StageRun, pretrained: StageRun, tmp_path: Path) -> None:
    spec = FinetuneSpec.parse({**TRAINING, "init": "pretrained", "model": {"image_px": 12}})
    inputs = {"data": digits.at("train"), "init": pretrained.at(None)}
    tuned = run_stage(train.run, spec, tmp_path / "tuned", inputs=inputs, seed=3)
    assert tuned.output.metrics["train/loss"] == pytest.approx(
        GOLDEN["finetune_loss"], abs=LOSS_TOLERANCE
    )
    measured = run_stage(
        evaluate.run,
        EvaluateSpec.parse({"data": "digits", "model": "tuned"}),
        tmp_path / "accuracy",
        inputs={"data": digits.at("test"), "model": tuned.at(None)},
    )
    for name in ("nll", "brier", "ece_ratio"):
        found = measured.output.metrics[f"test/{name}"]
        assert found == pytest.approx(GOLDEN[name], abs=LOSS_TOLERANCE)


def test_interpret(digits: StageRun, pretrained: StageRun, tmp_path: Path) -> None:
    spec = InterpretSpec.parse({"data": "digits", "model": "pretrained", "attention_images": 20})
    inputs = {"data": digits.at("test"), "model": pretrained.at(None)}
    made = run_stage(interpret.run, spec, tmp_path / "insight", inputs=inputs, seed=3)
    report = InterpretReport.parse(json.loads((made.path / "interpret.json").read_text()))
    assert report.attention is not None
    assert report.layers is not None
    assert [it.uid[:8] for it in report.shown[:2]] == GOLDEN["shown"]
    assert np.mean(report.attention.distances_px, axis=1) == pytest.approx(
        GOLDEN["distances"], abs=LOSS_TOLERANCE
    )
    assert report.layers.cka[0][1] == pytest.approx(GOLDEN["cka"], abs=1e-3)


def test_import(tmp_path: Path) -> None:
    shapes = {
        "embedding/kernel": (4, 4, 3, 8),
        "embedding/bias": (8,),
        "pos_embedding": (1, 4, 8),
        **{f"{BLOCK}LayerNorm_{it}/{part}": (8,) for it in (0, 1) for part in ("scale", "bias")},
        **{f"{BLOCK}{ATTENTION}{it}/kernel": (8, 2, 4) for it in ("query", "key", "value")},
        **{f"{BLOCK}{ATTENTION}{it}/bias": (2, 4) for it in ("query", "key", "value")},
        f"{BLOCK}{ATTENTION}out/kernel": (2, 4, 8),
        f"{BLOCK}{ATTENTION}out/bias": (8,),
        f"{BLOCK}MlpBlock_0/Dense_0/kernel": (8, 16),
        f"{BLOCK}MlpBlock_0/Dense_0/bias": (16,),
        f"{BLOCK}MlpBlock_0/Dense_1/kernel": (16, 8),
        f"{BLOCK}MlpBlock_0/Dense_1/bias": (8,),
        "Transformer/encoder_norm/scale": (8,),
        "Transformer/encoder_norm/bias": (8,),
        "head/kernel": (8, 3),
        "head/bias": (3,),
    }
    arrays = {
        name: np.sin(np.arange(np.prod(shape)) + index, dtype=np.float32).reshape(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }
    np.savez(tmp_path / "vit.npz", **{f"params/{name}": it for name, it in arrays.items()})
    spec = ImportSpec.parse({"source": {"layout": "google", "uri": str(tmp_path / "vit.npz")}})
    made = run_stage(import_weights.run, spec, tmp_path / "vit")
    model, saved = load_model(made.path / "model")
    (said,) = made.said
    assert said.startswith("the file does not say, and was taken: gelu tanh, layer_norm_eps 1e-06")
    assert (saved.key, saved.trained_steps, saved.spec.grid) == (made.artifact.digest, 0, (2, 2))
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8))
    assert logits[0].tolist() == pytest.approx(GOLDEN["import"], abs=1e-5)


def test_robustness(digits: StageRun, pretrained: StageRun, tmp_path: Path) -> None:
    tests = [
        {"type": "patch_drop", "percents": [50], "grids": ["own"], "seeds": 2},
        {"type": "patch_shuffle", "grids": [[2, 2]], "seeds": 2},
        {"type": "lesion"},
        {"type": "pgd"},
    ]
    spec = RobustnessSpec.parse({"data": "digits", "model": "pretrained", "tests": tests})
    inputs = {"data": digits.at("train"), "model": pretrained.at(None)}
    made = run_stage(robustness.run, spec, tmp_path / "robust", inputs=inputs, seed=3)
    report = RobustnessReport.parse(json.loads((made.path / "robustness.json").read_text()))
    found: dict[str, list[float]] = {}
    for curve in report.curves:
        found.setdefault(curve.test, []).extend(point.mean for point in curve.points)
    means = {test: sum(values) / len(values) for test, values in found.items()}
    assert means == pytest.approx(GOLDEN["robustness"], abs=0.02)


def test_baseline(digits: StageRun, tmp_path: Path) -> None:
    spec = BaselineSpec.parse({"data": "digits", "image_px": 8})
    made = run_stage(baseline.run, spec, tmp_path / "pixels", inputs={"data": digits.at(None)})
    report = AccuracyReport.parse(json.loads((made.path / "accuracy.json").read_text()))
    correct = {found.method: (found.correct, found.total) for found in report.accuracies}
    assert correct == GOLDEN["baseline"]


def test_features_and_probe(digits: StageRun, pretrained: StageRun, tmp_path: Path) -> None:
    spec = FeaturesSpec.parse({"data": "digits", "model": "pretrained"})
    inputs = {"data": digits.at(None), "model": pretrained.at(None)}
    extracted = run_stage(features.run, spec, tmp_path / "features", inputs=inputs)
    document = FeaturesDocument.model_validate_json((extracted.path / FEATURES_FILE).read_bytes())
    first = open_features(extracted.path, document, "train").all()[0, :3]
    assert first.tolist() == pytest.approx(GOLDEN["features"], abs=1e-3)
    measured = ProbeSpec.parse({"features": "features", "shots": [1, 5]})
    inputs = {"features": extracted.at("test")}
    made = run_stage(probe.run, measured, tmp_path / "probe", inputs=inputs, seed=3)
    report = ProbeReport.model_validate_json((made.path / PROBE_FILE).read_bytes())
    correct = [it.accuracy.correct for it in report.few_shot]
    correct += [it.correct for it in report.accuracies]
    assert correct == pytest.approx(GOLDEN["probe"], abs=1), "an image may lie on a border"


def test_compare(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    inputs = {}
    for number, right in enumerate((50, 41)):
        made = artifact(tmp_path, f"model{number}", "evaluate")
        predicted = np.where(np.arange(60) < right, labels, (labels + 1) % 3)
        write_answers(Path(made.path), predicted, labels)
        inputs[f"of[{number}]"] = made
    spec = CompareSpec(of=("model0", "model1"))
    run = run_stage(compare.run, spec, tmp_path / "compare", inputs=inputs, seed=3)
    report = ComparisonReport.model_validate_json((run.path / COMPARISON_FILE).read_bytes())
    (pair,) = report.pairs
    found = [pair.difference_ratio, pair.low_ratio, pair.high_ratio, pair.mcnemar_p]
    assert found == pytest.approx(GOLDEN["compare"], abs=1e-4)


GOLDEN: dict[str, Any] = {
    "compare": [0.15, 0.0667, 0.25, 0.0039],
    "features": [1.8437, 1.5334, -0.0577],
    "probe": [82, 85, 75, 89, 83, 87, 107, 108, 103],
    "splits": {"test": 118, "train": 120},
    "first": "digits/0615",
    "first_uid": "0f4c7502ef5da6ce9dd024a3c6bdf547",
    "filter": (18, 102),
    "append": ({"duplicate": 79}, 180),
    "last_appended": "digits/0153",
    "second": "digits/1668",
    "pretrain_loss": 1.0970216989517212,
    "masked_patch_loss": 5.566270351409912,
    "mae_loss": 1.0578409433364868,
    "finetune_loss": 1.1254479885101318,
    "import": [-0.63974929, -1.776366, -1.27980018],
    "shown": ["87792967", "4ce968c1"],
    "distances": [3.4511370992013144, 3.5521613478017984],
    "cka": 0.8748223345805579,
    "nll": 1.102529802446306,
    "brier": 0.6695568752735478,
    "ece_ratio": 0.058533188494945855,
    "robustness": {
        "patch_drop": 0.425,
        "patch_shuffle": 0.695833,
        "lesion": 0.586111,
        "pgd": 0.65625,
    },
    "baseline": {"logistic_regression": (117, 118), "nearest_neighbour": (118, 118)},
}
