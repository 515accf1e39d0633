"""The entry points of `evaluate`, `baseline` and `report`, on real digits and a real model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from jobs import baseline, evaluate, ingest, report
from pipeline.data.shards.shard_set import ShardSet
from pipeline.model.saved import save_model
from pipeline.model.vit import build
from schemas.checkpoint import SavedModel
from schemas.data import ImageSpec, IngestSpec, SelectSpec, SplitSpec
from schemas.errors import DataError, StageFailedError
from schemas.evaluation import AccuracyReport, BaselineSpec, EvaluateSpec, ReportSpec
from schemas.model import ViTSpec
from schemas.records import PREDICTIONS
from schemas.report_page import RECORD_FILE, ReportDocument
from schemas.runs import InputArtifact
from schemas.sources import ImageFolderSource, SklearnSource
from tests.support.evaluation import artifact
from tests.support.report_pages import numbers_of, recomputed
from tests.support.stages import StageRun, run_stage

CLASSES = ("5", "6", "7")
EVALUATE = EvaluateSpec(data="digits@test", model="model", batch_samples=50)
BASELINE = BaselineSpec(data="digits", image_px=8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    """Three classes of digits with twenty labels each; about 270 test images."""
    spec = IngestSpec(
        source=SklearnSource(),
        select=SelectSpec(classes=CLASSES, per_class={"train": 20}),
        split=SplitSpec(test_ratio=0.5),
        image=ImageSpec(encoding="png"),
    )
    return run_stage(ingest.run, spec, tmp_path_factory.mktemp("data") / "digits")


def make_model(
    folder: Path, *, classes: tuple[str, ...] = CLASSES, scale: float = 1.0
) -> InputArtifact:
    """A model with random weights, head included; not a good one."""
    spec = ViTSpec(
        width=16,
        depth=1,
        num_heads=2,
        mlp_dim=32,
        patch_px=4,
        image_px=(8, 8),
        num_classes=len(classes),
    )
    weights = {name: tensor.clone() for name, tensor in build(spec, seed=1).state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    weights["head.weight"] = scale * torch.randn(len(classes), 16, generator=generator)
    saved = SavedModel(
        spec=spec, class_names=classes, trained_steps=0, key="k", data_digest="d", init_digest=None
    )
    made = artifact(folder, "model", "finetune")
    save_model(Path(made.path) / "model", weights, saved)
    return made


def evaluated(folder: Path, digits: StageRun, **changes: object) -> StageRun:
    inputs = {"data": digits.at("test"), "model": make_model(folder)}
    return run_stage(evaluate.run, EVALUATE.revise(**changes), folder / "accuracy", inputs=inputs)


def read_report(run: StageRun) -> AccuracyReport:
    return AccuracyReport.model_validate_json((run.path / "accuracy.json").read_bytes())


def test_every_image_of_the_split_is_answered_once(tmp_path: Path, digits: StageRun) -> None:
    run = evaluated(tmp_path, digits)
    split = ShardSet.open(digits.path / "dataset").split("test")
    table = pa.ipc.open_file(run.path / "predictions.arrow").read_all()
    rows = [split.row(index) for index in range(split.num_rows)]
    assert table.schema == PREDICTIONS
    assert table["uid"].to_pylist() == [row.uid for row in rows]
    assert table["label"].to_pylist() == [row.label for row in rows]
    logits = np.array(table["logits"].to_pylist())
    assert logits.shape == (split.num_rows, len(CLASSES))
    assert (logits.argmax(axis=1) == table["predicted"].to_numpy()).all()


def test_the_figures_of_a_model_follow_from_its_predictions(
    tmp_path: Path, digits: StageRun
) -> None:
    run = evaluated(tmp_path, digits)
    table = pa.ipc.open_file(run.path / "predictions.arrow").read_all()
    labels, answers = table["label"].to_numpy(), table["predicted"].to_numpy()
    (accuracy,) = (found := read_report(run)).accuracies
    assert (accuracy.method, found.split, found.class_names) == ("model", "test", CLASSES)
    assert (accuracy.correct, accuracy.total) == ((labels == answers).sum(), len(labels))
    metrics = run.output.metrics
    assert metrics["test/top1_ratio"] == accuracy.top1_ratio
    assert metrics["test/top1_low_ratio"] < accuracy.top1_ratio < metrics["test/top1_high_ratio"]
    assert metrics["test/images_count"] == len(labels)
    logits = torch.tensor(table["logits"].to_pylist(), dtype=torch.float64)
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
    assert metrics["test/nll"] == pytest.approx(float(nll))
    assert (run.path / "figures" / "confusion.png").exists()
    assert (run.path / "figures" / "predictions.png").exists()


@pytest.mark.parametrize("changes", [{"batch_samples": 7}, {"batch_samples": 1000, "threads": 2}])
def test_batches_and_threads_do_not_change_the_answers(
    tmp_path: Path, digits: StageRun, changes: dict[str, object]
) -> None:
    first, second = evaluated(tmp_path / "a", digits), evaluated(tmp_path / "b", digits, **changes)
    assert read_report(first) == read_report(second)


def test_another_split_gives_metrics_of_its_own_name(tmp_path: Path, digits: StageRun) -> None:
    inputs = {"data": digits.at("train"), "model": make_model(tmp_path)}
    run = run_stage(evaluate.run, EVALUATE, tmp_path / "accuracy", inputs=inputs)
    assert run.output.metrics["train/images_count"] == 60
    assert read_report(run).split == "train"


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("5", "6", "8"), "only in the data: 7; only in the model: 8"),
        (("7", "6", "5"), r"the order is \['7', '6', '5'\] against \['5', '6', '7'\]"),
    ],
)
def test_a_model_of_other_classes_is_refused(
    tmp_path: Path, digits: StageRun, classes: tuple[str, ...], sentence: str
) -> None:
    inputs = {"data": digits.at("test"), "model": make_model(tmp_path, classes=classes)}
    with pytest.raises(DataError, match=sentence):
        run_stage(evaluate.run, EVALUATE, tmp_path / "accuracy", inputs=inputs)


def test_a_model_that_answers_nan_is_refused(tmp_path: Path, digits: StageRun) -> None:
    inputs = {"data": digits.at("test"), "model": make_model(tmp_path, scale=float("nan"))}
    with pytest.raises(StageFailedError, match="not finite"):
        run_stage(evaluate.run, EVALUATE, tmp_path / "accuracy", inputs=inputs)


def test_an_unknown_split_is_refused(tmp_path: Path, digits: StageRun) -> None:
    inputs = {"data": digits.at("tset"), "model": make_model(tmp_path)}
    with pytest.raises(DataError, match="did you mean 'test'"):
        run_stage(evaluate.run, EVALUATE, tmp_path / "accuracy", inputs=inputs)


def test_baselines_are_measured_on_the_whole_test_split(tmp_path: Path, digits: StageRun) -> None:
    run = run_stage(baseline.run, BASELINE, tmp_path / "pixels", inputs={"data": digits.artifact})
    found = read_report(run)
    total = ShardSet.open(digits.path / "dataset").split("test").num_rows
    assert [it.method for it in found.accuracies] == list(BASELINE.methods)
    assert all(it.total == total and it.top1_ratio > 0.9 for it in found.accuracies)
    assert found.chosen["logistic_regression.folds"] == 5
    metrics = run.output.metrics
    assert metrics["baseline/nearest_neighbour_top1_ratio"] == found.accuracies[0].top1_ratio
    assert metrics["baseline/logistic_regression_top1_ratio"] == found.accuracies[1].top1_ratio


def write_tree(folder: Path, *, turned: bool) -> Path:
    """Digits as a tree of class folders; `turned` mixes up the labels of the test images."""
    images, labels = load_digits(return_X_y=True)
    for index in np.flatnonzero(labels < 3)[:240]:
        split = "train" if index % 2 else "test"
        label = (labels[index] + (index % 3 if turned and split == "test" else 0)) % 3
        path = folder / split / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[index].reshape(8, 8) * 15).astype(np.uint8)).save(path)
    return folder


def test_baselines_never_look_at_the_test_labels(tmp_path: Path) -> None:
    """Other labels on the same test images: equal answers and choices, another accuracy."""
    found = []
    for turned in (False, True):
        folder = tmp_path / str(turned)
        source = ImageFolderSource(
            uri=str(write_tree(folder / "tree", turned=turned)),
            splits={"train": "train", "test": "test"},
        )
        data = run_stage(
            ingest.run, IngestSpec(source=source, image=ImageSpec(encoding="png")), folder / "data"
        )
        run = run_stage(baseline.run, BASELINE, folder / "pixels", inputs={"data": data.artifact})
        found.append(read_report(run))
    honest, turned_around = found
    assert honest.chosen == turned_around.chosen
    for method in BASELINE.methods:
        answers = [np.sum(it.confusion[method], axis=0).tolist() for it in found]
        assert answers[0] == answers[1]
    assert honest.accuracies[0].top1_ratio > turned_around.accuracies[0].top1_ratio + 0.3


def test_a_report_shows_what_the_stages_measured(tmp_path: Path, digits: StageRun) -> None:
    accuracy = evaluated(tmp_path, digits)
    pixels = run_stage(
        baseline.run, BASELINE, tmp_path / "pixels", inputs={"data": digits.artifact}
    )
    sources = [digits, accuracy, pixels]
    run = run_stage(
        report.run,
        ReportSpec(of=("digits", "accuracy", "pixels")),
        tmp_path / "report",
        inputs={f"of[{index}]": it.artifact for index, it in reversed(list(enumerate(sources)))},
    )
    document = ReportDocument.parse(json.loads((run.path / "report.json").read_text()))
    assert document.title == "Report"
    assert [it.stage for it in document.lineage] == ["digits", "accuracy", "pixels"]
    assert document.notes, "random weights lose to simple methods"
    assert run.said == [note.text for note in document.notes]
    files = {it.artifact.artifact: it.path for it in sources}
    for number in numbers_of(document):
        if number.traces[0].file != RECORD_FILE:  # these stages were run outside of a store
            assert number.value == pytest.approx(recomputed(number, files), rel=1e-12)
    titles = {it.title for section in document.sections for it in section.figures}
    assert {"digits: what the images are like", "digits: contact sheet"} <= titles
    shown = {path.name for path in (run.path / "figures").iterdir()}
    assert shown == {
        "accuracy.png",
        "accuracy-confusion.png",
        "accuracy-predictions.png",
        "digits-classes.png",
        "digits-contact_sheet.png",
        "digits-quality.png",
        "lineage.svg",
    }
