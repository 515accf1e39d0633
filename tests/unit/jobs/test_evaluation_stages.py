"""The entry points of `evaluate`, `baseline` and `report`, on real digits and a real model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from infra.remote_files import FsspecFiles
from jobs import baseline, evaluate, ingest, report
from jobs.stage import StageOutput, StageTools
from jobs.stage_sources import fingerprint, read_source
from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.accuracy import accuracy_of
from pipeline.evaluation.label_sets import parse_label_sets
from pipeline.evaluation.passes import pixels_of, torch_threads
from pipeline.model.positions import resized_tables
from pipeline.model.saved import load_weights, save_model
from pipeline.model.vit import build
from schemas.checkpoint import SavedModel
from schemas.data import ImageSpec, IngestSpec, SelectSpec, SplitSpec
from schemas.errors import DataError, SpecError, StageFailedError
from schemas.evaluation import (
    AccuracyReport,
    BaselineSpec,
    EvaluateSpec,
    LabelSetsSource,
    ReportSpec,
)
from schemas.model import ViTSpec
from schemas.records import PREDICTIONS
from schemas.report_page import RECORD_FILE, ReportDocument
from schemas.runs import InputArtifact, StageRequest
from schemas.sources import ImageFolderSource, SklearnSource
from schemas.spec import semantic_fields
from tests.support.evaluation import artifact
from tests.support.pools import ChaosPool
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


def test_the_report_follows_from_the_predictions_alone(tmp_path: Path, digits: StageRun) -> None:
    run = evaluated(tmp_path, digits, resolutions_px=(16, 4))
    (alone := tmp_path / "alone").mkdir()
    for path in run.path.glob("predictions*.arrow"):
        shutil.copy(path, alone)
    assert len(list(alone.iterdir())) == 3
    assert accuracy_of(alone) == read_report(run)
    model = read_report(run).of_model()
    assert (model.top1.correct, model.top5) == (read_report(run).accuracies[0].correct, None)
    assert model.top1.bootstrap_low_ratio < model.top1.ratio < model.top1.bootstrap_high_ratio
    assert sum(it.images for it in model.calibration.bins) == model.top1.total
    assert run.output.metrics["test/ece_ratio"] == model.calibration.ece_ratio
    assert run.output.metrics["test/brier"] == model.brier


def test_the_measured_names_are_those_that_gates_may_name(tmp_path: Path, digits: StageRun) -> None:
    sets = write_sets(tmp_path / "sets.json", {})
    spec = EVALUATE.revise(resolutions_px=(16,), label_sets=LabelSetsSource(uri=str(sets)))
    run = evaluated(
        tmp_path, digits, resolutions_px=spec.resolutions_px, label_sets=spec.label_sets
    )
    found = {name.removeprefix("test/") for name in run.output.metrics}
    only_sometimes = {it for it in spec.measured() if it.startswith(("top5", "sets_top1"))}
    assert found == {*spec.measured(), "top1_8px_ratio"} - only_sometimes


def test_at_another_size_the_model_is_that_of_resized_positions(
    tmp_path: Path, digits: StageRun
) -> None:
    run = evaluated(tmp_path, digits, resolutions_px=(12, (16, 8), 8))
    sizes = {it.image_px: it for it in read_report(run).of_model().sizes}
    assert list(sizes) == [(8, 8), (12, 12), (16, 8)], "its own size stands among them, once"
    assert sizes[8, 8].top1 == read_report(run).of_model().top1
    weights, saved = load_weights(tmp_path / "model" / "model")
    spec = saved.spec.revise(image_px=(12, 12))
    weights |= resized_tables(weights, saved.spec, spec)
    model = build(spec, seed=0)
    model.load_state_dict(weights)
    split = ShardSet.open(digits.path / "dataset").split("test")
    batch = next(eval_batches(split, image_px=(12, 12), batch_samples=50, threads=1))
    with torch.inference_mode(), torch_threads(1):
        expected = model.eval()(pixels_of(batch, model))
    table = pa.ipc.open_file(run.path / "predictions-12px.arrow").read_all()
    assert table["logits"][:50].to_pylist() == expected.tolist()
    assert (run.path / "figures" / "sizes.png").exists()
    assert run.output.metrics["test/top1_16x8px_ratio"] == sizes[16, 8].top1.ratio


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, digits: StageRun, workers: int
) -> None:
    def by_workers(request: StageRequest, tools: StageTools) -> StageOutput:
        return evaluate.run(request, replace(tools, pool=ChaosPool(workers=workers, seed=workers)))

    changes = {"batch_samples": 8, "resolutions_px": (12,)}
    alone = evaluated(tmp_path / "alone", digits, **changes)
    inputs = {"data": digits.at("test"), "model": make_model(tmp_path)}
    spec = EVALUATE.revise(workers=workers, **changes)
    many = run_stage(by_workers, spec, tmp_path / "accuracy", inputs=inputs)
    assert many.output == alone.output
    for name in ("predictions.arrow", "predictions-12px.arrow", "accuracy.json"):
        assert (many.path / name).read_bytes() == (alone.path / name).read_bytes()


def test_a_size_that_the_model_cannot_take_is_refused_before_any_work(
    tmp_path: Path, digits: StageRun
) -> None:
    with pytest.raises(SpecError, match=r"cannot take images of 10 x 10 px: .* multiples of patch"):
        evaluated(tmp_path, digits, resolutions_px=(10,))
    assert not list(tmp_path.rglob("*.arrow"))


def write_sets(path: Path, sets: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sets))
    return path


def test_an_answer_in_the_set_of_right_classes_is_right(tmp_path: Path, digits: StageRun) -> None:
    split = ShardSet.open(digits.path / "dataset").split("test")
    sources = [split.row(index).source for index in range(split.num_rows)]
    sets: dict[str, list[object]] = {source: ["5", 1] for source in sources[:100]}
    sets |= {Path(source).stem: [] for source in sources[100:130]} | {"nobody.jpg": ["7"]}
    file = write_sets(tmp_path / "sets.json", sets)
    run = evaluated(tmp_path, digits, label_sets=LabelSetsSource(uri=str(file)))
    found = read_report(run).of_model().label_sets
    assert found is not None
    assert found.top1 is not None
    table = pa.ipc.open_file(run.path / "predictions.arrow").read_all()
    in_set = sum(answer in (0, 1) for answer in table["predicted"][:100].to_pylist())
    assert (found.top1.correct, found.top1.total, found.left_out) == (in_set, 100, 30)
    assert found.unnamed == split.num_rows - 130
    assert (found.unknown_count, found.unknown_names) == (1, ("nobody.jpg",))
    assert table["labels"].to_pylist()[99:131] == [[0, 1], *[[]] * 30, None]
    assert any("1 names of" in line and "nobody.jpg" in line for line in run.said)
    assert run.output.metrics["test/sets_left_out_count"] == split.num_rows - 100


def test_real_labels_are_a_list_by_the_number_of_the_validation_image() -> None:
    sets = parse_label_sets(b"[[1], [], [2, 0]]", ("a", "b", "c"))
    assert sets == {
        "ILSVRC2012_val_00000001": [1],
        "ILSVRC2012_val_00000002": [],
        "ILSVRC2012_val_00000003": [0, 2],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"a": ["6 "]}', "gives '6 ' for a, which is no class of the data; did you mean '6'"),
        (b'{"a": [3]}', "they are names, or 0 to 2"),
        (b'{"a": 1}', "must be a list of classes"),
        (b"1", "must be an object"),
        (b"{", "is no JSON"),
    ],
)
def test_a_file_of_sets_that_means_nothing_is_refused(text: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_label_sets(text, CLASSES)


def test_the_content_of_the_file_of_sets_is_keyed_and_its_place_is_not(tmp_path: Path) -> None:
    first, same, other = (
        LabelSetsSource(uri=str(write_sets(tmp_path / name / "it.json", sets)))
        for name, sets in (("a", {"x": [0]}), ("b", {"x": [0]}), ("c", {"x": [1]}))
    )
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)
    assert semantic_fields(first) == {}
    with pytest.raises(DataError, match=r"nowhere\.json"):
        fingerprint(LabelSetsSource(uri=str(tmp_path / "nowhere.json")))


def test_a_file_of_sets_may_lie_in_a_store(tmp_path: Path) -> None:
    content = json.dumps({"x": [0]}).encode()
    fsspec.filesystem("memory").pipe_file("/sets/it.json", content)
    remote = LabelSetsSource(uri="memory://sets/it.json")
    assert read_source(remote.uri, FsspecFiles()) == content
    local = LabelSetsSource(uri=str(write_sets(tmp_path / "it.json", {"x": [0]})))
    assert fingerprint(remote, FsspecFiles()) == fingerprint(local)
    with pytest.raises(DataError, match="only files of this machine"):
        fingerprint(remote)


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
        "accuracy-reliability.png",
        "digits-classes.png",
        "digits-contact_sheet.png",
        "digits-quality.png",
        "lineage.svg",
    }
