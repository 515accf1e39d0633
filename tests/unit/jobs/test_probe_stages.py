"""The entry points of `features` and `probe`, on real digits and a real model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import features, ingest, probe
from jobs.results import accuracy_rows
from jobs.workspace import open_workspace
from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.features import Features, open_features
from pipeline.evaluation.probes.probing import ProbeData
from pipeline.evaluation.probes.probing import probe as measure
from pipeline.model.backbone import normalise
from pipeline.model.saved import load_model
from schemas.data import ImageSpec, IngestSpec, SelectSpec, SplitSpec
from schemas.errors import DataError, StageFailedError
from schemas.probing import FeaturesDocument, FeaturesSpec, ProbeReport, ProbeSpec
from schemas.runs import InputArtifact, RunDocument, StageOutcome
from schemas.sources import SklearnSource
from schemas.spec import canonical_json
from tests.support.features import made_features
from tests.support.models import saved_model
from tests.support.stages import StageRun, run_stage
from tests.support.workspaces import keep

CLASSES = ("5", "6", "7")
FEATURES = FeaturesSpec(data="digits", model="model", batch_samples=16)
PROBE = ProbeSpec(features="features", shots=(1, 5))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    spec = IngestSpec(
        source=SklearnSource(),
        select=SelectSpec(classes=CLASSES, per_class={"train": 20}),
        split=SplitSpec(test_ratio=0.5),
        image=ImageSpec(encoding="png"),
    )
    return run_stage(ingest.run, spec, tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InputArtifact:
    return saved_model(tmp_path_factory.mktemp("model"), CLASSES)


@pytest.fixture(scope="module")
def extracted(
    digits: StageRun, model: InputArtifact, tmp_path_factory: pytest.TempPathFactory
) -> StageRun:
    inputs = {"data": digits.at(None), "model": model}
    return run_stage(
        features.run, FEATURES, tmp_path_factory.mktemp("f") / "features", inputs=inputs
    )


def opened(run: StageRun, split: str) -> tuple[FeaturesDocument, Features]:
    document = FeaturesDocument.model_validate_json((run.path / "features.json").read_bytes())
    return document, open_features(run.path, document, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_are_what_the_head_sees_of_each_image(
    split: str, digits: StageRun, model: InputArtifact, extracted: StageRun
) -> None:
    document, found = opened(extracted, split)
    data = ShardSet.open(digits.path / "dataset")
    assert document.data_digest == data.digest
    assert document.split_rows == {name: it.rows for name, it in data.manifest.splits.items()}
    loaded, _ = load_model(Path(model.path) / "model")
    expected, labels, uids = [], [], []
    for batch in eval_batches(data.split(split), image_px=(8, 8), batch_samples=16, threads=1):
        with torch.inference_mode():
            pixels = normalise(torch.from_numpy(batch.pixels_BHWC), loaded.spec)
            expected.append(loaded.forward_features(pixels).numpy())
        labels.append(batch.label_B)
        uids += [bytes(uid) for uid in batch.uid_B]
    assert np.array_equal(found.all(), np.concatenate(expected))
    assert np.array_equal(found.labels, np.concatenate(labels))
    assert found.table["uid"].to_pylist() == uids


def test_features_at_another_size(digits: StageRun, model: InputArtifact, tmp_path: Path) -> None:
    inputs = {"data": digits.at(None), "model": model}
    spec = FEATURES.revise(splits=("test",), image_px=12)
    document, found = opened(run_stage(features.run, spec, tmp_path / "f", inputs=inputs), "test")
    assert document.image_px == (12, 12)
    loaded, _ = load_model(Path(model.path) / "model", image_px=(12, 12))
    split = ShardSet.open(digits.path / "dataset").split("test")
    batch = next(iter(eval_batches(split, image_px=(12, 12), batch_samples=16, threads=1)))
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(batch.pixels_BHWC), loaded.spec)
        assert np.array_equal(found.all()[:16], loaded.forward_features(pixels).numpy())


def test_only_the_splits_that_the_spec_names(
    digits: StageRun, model: InputArtifact, tmp_path: Path
) -> None:
    inputs = {"data": digits.at(None), "model": model}
    spec = FEATURES.revise(splits=("test",))
    run = run_stage(features.run, spec, tmp_path / "f", inputs=inputs)
    assert sorted(path.name for path in (run.path / "features").iterdir()) == ["test.arrow"]
    with pytest.raises(DataError, match="no split 'tset'"):
        run_stage(features.run, FEATURES.revise(splits=("tset",)), tmp_path / "g", inputs=inputs)


def test_features_that_are_no_numbers_are_refused(digits: StageRun, tmp_path: Path) -> None:
    broken = saved_model(tmp_path, CLASSES, scale=float("nan"))
    inputs = {"data": digits.at(None), "model": broken}
    with pytest.raises(StageFailedError, match="not finite"):
        run_stage(features.run, FEATURES, tmp_path / "f", inputs=inputs)


def test_a_probe_measures_every_method(extracted: StageRun, tmp_path: Path) -> None:
    run = run_stage(probe.run, PROBE, tmp_path / "probe", inputs={"features": extracted.at("test")})
    report = ProbeReport.model_validate_json((run.path / "probe.json").read_bytes())
    _, test = opened(extracted, "test")
    assert report.class_counts == tuple(np.bincount(test.labels))
    assert [it.method for it in report.accuracies] == ["knn_1", "knn_20", "logistic_regression"]
    ratio = report.accuracies[2].top1_ratio
    assert run.output.metrics["test/logistic_regression_top1_ratio"] == ratio > 0.5
    assert run.output.metrics["test/few_shot_5_top1_ratio"] == report.few_shot_means[1].mean_ratio
    with Image.open(run.path / "figures" / "shots.png") as figure:
        assert figure.width > 600
    assert (run.path / "figures" / "figures.json").is_file()


def test_the_table_of_a_run_shows_a_probe(tmp_path: Path) -> None:
    train, measured = made_features(300), made_features(200, seed=1)
    data = ProbeData(train, measured, "test", tuple("abcd"), 3)
    report = measure(PROBE, data, say=[].append)
    key = keep_probe(tmp_path, report)
    outcome = StageOutcome(
        name="fewshot", kind="probe", status="ran", key=key, artifact=None, seconds=1, metrics={}
    )
    document = RunDocument(run="r", status="finished", stages=(outcome,))
    rows = accuracy_rows(document, open_workspace(tmp_path))
    assert [row[1] for row in rows] == [
        "few shot 1, mean of 3",
        "few shot 5, mean of 3",
        "knn 1",
        "knn 20",
        "logistic regression",
    ]
    one = report.few_shot_means[0]
    assert rows[0][2:] == (
        f"{100 * one.mean_ratio:.1f} %",
        f"{100 * one.low_ratio:.1f} - {100 * one.high_ratio:.1f} %",
        "-",
    )
    assert rows[2][4] == f"{report.accuracies[0].correct} / 200"


def keep_probe(workspace: Path, report: ProbeReport) -> str:
    """Put a probe's report into the store of a workspace; its key."""
    files = workspace / "files"
    files.mkdir()
    (files / "probe.json").write_text(canonical_json(report.dump()))
    return keep(workspace, files, experiment="e", stage="fewshot", spec=PROBE).key


def test_what_a_probe_cannot_measure_is_refused(extracted: StageRun, tmp_path: Path) -> None:
    for split, sentence in (("train", "learns from train"), ("valid", "not of 'valid'")):
        inputs = {"features": extracted.at(split)}
        with pytest.raises(DataError, match=sentence):
            run_stage(probe.run, PROBE, tmp_path / split, inputs=inputs)
