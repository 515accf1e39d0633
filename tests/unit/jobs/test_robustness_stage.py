"""The entry point of `robustness`: real models beside each other, and figures that follow."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import report as reporting
from jobs import robustness
from pipeline.cost.robustness import forward_passes
from pipeline.evaluation.metrics import wilson_interval
from pipeline.evaluation.robustness.summary import share_interval
from pipeline.model.saved import load_saved
from schemas.backbones import ResNetSpec
from schemas.errors import DataError
from schemas.evaluation import ReportSpec
from schemas.model import ViTSpec
from schemas.report import FigureNotes
from schemas.robustness import ALL_TESTS, RobustnessSpec
from schemas.robustness_report import RobustnessReport
from tests.support.robustness import trained_models
from tests.support.stages import StageRun, run_stage

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")
QUICK: list[dict[str, Any]] = [
    {"type": "patch_drop", "percents": [20, 60], "grids": [[8, 8], "own", [40, 40]], "seeds": 2},
    {"type": "patch_shuffle", "grids": [[2, 2], [5, 3]], "seeds": 2},
    {"type": "lesion", "percents": [50]},
    {"type": "token_correlation", "percents": [25, 75], "grid": [8, 8], "seeds": 1},
    {"type": "fgsm", "eps_per_255": [2.0, 8.0]},
    {"type": "pgd", "eps_per_255": [4.0], "steps": 2, "seeds": 2},
    {"type": "image_patch", "side_percents": [20], "steps": 2},
    {"type": "universal_patch", "side_percents": [20], "steps": 3, "training_images": 10},
    {"type": "corruption", "names": ["fog", "contrast"], "severities": [1, 5]},
]
PIXELS = ("patch_drop", "patch_shuffle", "corruption")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, StageRun]:
    return trained_models(tmp_path_factory.mktemp("trained"))


def measured(
    made: Mapping[str, StageRun], folder: Path, *models: str, **fields: Any
) -> tuple[StageRun, RobustnessReport]:
    plain = {"data": "digits", "model": list(models), "samples": 50, "tests": QUICK}
    spec = RobustnessSpec.parse(plain | fields)
    inputs = {f"model[{number}]": made[name].at(None) for number, name in enumerate(models)}
    inputs |= {"data": made["digits"].at("test")}
    for port in ("guide", "reference"):
        if port in fields:
            inputs[port] = made[fields[port]].at(None)
    run = run_stage(robustness.run, spec, folder, inputs=inputs, seed=11)
    return run, RobustnessReport.parse(json.loads((run.path / "robustness.json").read_text()))


@pytest.fixture(scope="module")
def both(
    made: Mapping[str, StageRun], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageRun, RobustnessReport]:
    folder = tmp_path_factory.mktemp("robustness") / "both"
    return measured(made, folder, "vit", "resnet", reference="resnet")


def answers(run: StageRun) -> pa.Table:
    return pa.ipc.open_file(run.path / "answers-32x32.arrow").read_all()


def test_every_figure_follows_from_the_answers(both: tuple[StageRun, RobustnessReport]) -> None:
    run, report = both
    table = answers(run)
    label = table["label"].to_numpy()
    for model in report.models:
        right = table[model.column].to_numpy() == label
        assert (model.clean.correct, model.clean.total) == (right.sum(), 50)
    counted = 0
    for curve in report.curves:
        for point in curve.points:
            columns = [table[name].to_numpy().astype(float) for name in point.columns]
            values = np.stack(columns)[:, ~np.isnan(columns[0])]
            if curve.measure == "top1_ratio":
                kept = label[~np.isnan(columns[0])]
                values = (values == kept).astype(float)
            assert point.images == values.shape[1]
            assert point.mean == pytest.approx(values.mean())
            assert point.draws == pytest.approx(values.mean(axis=1))
            assert point.low <= point.mean <= point.high
            if curve.measure == "top1_ratio" and len(columns) == 1:
                correct = int(values.sum())
                assert (point.low, point.high) == pytest.approx(
                    wilson_interval(correct, point.images)
                )
            counted += len(columns)
    assert counted + 2 == len(table.column_names) - 2, "every column is in a curve"


def test_both_models_stand_in_every_curve(both: tuple[StageRun, RobustnessReport]) -> None:
    run, report = both
    assert [it.stage for it in report.models] == ["vit", "resnet"]
    assert report.guide == "vit"
    for test in QUICK:
        for model in ("vit", "resnet"):
            assert [it for it in report.curves if (it.test, it.model) == (test["type"], model)]
    notes = FigureNotes.parse(json.loads((run.path / "figures" / "figures.json").read_text()))
    files = {note.file for note in notes.figures}
    assert files == {path.name for path in (run.path / "figures").glob("*.png")}
    assert {f"{test['type']}.png" for test in QUICK} <= files
    assert run.output.metrics["test/images_count"] == 50


def test_the_reference_makes_as_many_errors_as_itself(
    both: tuple[StageRun, RobustnessReport],
) -> None:
    _, report = both
    vit, resnet = report.corruptions
    assert (resnet.model, resnet.mce_ratio) == ("resnet", 1.0)
    ratios = [vit.errors[name] / resnet.errors[name] for name in ("fog", "contrast")]
    assert vit.mce_ratio == pytest.approx(np.mean(ratios))
    assert vit.mean_error == pytest.approx(np.mean(list(vit.errors.values())))


def test_what_cannot_be_measured_is_listed(both: tuple[StageRun, RobustnessReport]) -> None:
    run, report = both
    absent = {(it.test, it.model, it.what) for it in report.absent}
    assert {("corruption", None, "frost"), ("corruption", None, "spatter")} <= absent
    assert ("patch_drop", "vit", "40x40") in absent
    assert any("frost is absent" in line for line in run.said)


def test_a_universal_patch_is_measured_on_other_images(
    both: tuple[StageRun, RobustnessReport],
) -> None:
    run, report = both
    curves = [it for it in report.curves if it.test == "universal_patch"]
    assert {point.images for curve in curves for point in curve.points} == {40}
    table = answers(run)
    (name,) = (it for it in table.column_names if it.startswith("vit|universal_patch/attack"))
    assert table[name].is_null().to_pylist() == [True] * 10 + [False] * 40
    noise, learned = np.load(run.path / "patches" / "0-20-0.npy")
    assert noise.shape == (6, 6, 3)
    assert (learned != noise).any()


def test_changed_images_do_not_depend_on_the_batch(
    made: Mapping[str, StageRun], both: tuple[StageRun, RobustnessReport], tmp_path: Path
) -> None:
    pixels = [test for test in QUICK if test["type"] in PIXELS]
    again, _ = measured(made, tmp_path / "again", "resnet", "vit", tests=pixels, batch_samples=7)
    one, other = answers(both[0]), answers(again)
    assert one["uid"].to_pylist() == other["uid"].to_pylist()
    shared = [it for it in other.column_names if it.count("/") and "dropped_ratio" not in it]
    assert len(shared) > 20
    for name in shared:
        if "salient" not in name:
            assert one[name].equals(other[name]), name


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("tests", [QUICK, [test.dump() for test in ALL_TESTS]])
def test_passes_are_those_that_plan_counts(
    name: str, tests: list[dict[str, Any]], made: Mapping[str, StageRun]
) -> None:
    from torch import device

    from pipeline.evaluation.robustness.work import Named, Robustness

    folder = made[name].path / "model"
    guide = Named("vit", made["vit"].path / "model", 0)
    spec = RobustnessSpec.parse({"data": "digits", "model": name, "tests": tests})
    work = Robustness((Named(name, folder, 0),), guide, spec.tests, Path(), 10, 0)
    model = load_saved(folder).spec
    assert isinstance(model, ViTSpec | ResNetSpec)
    expected = forward_passes(spec.tests, model, guided=True)
    assert work.load(device("cpu")).plans[0].passes == expected


def test_without_attention_nothing_is_salient(made: Mapping[str, StageRun], tmp_path: Path) -> None:
    tests = [QUICK[0]]
    _, report = measured(made, tmp_path / "cnn", "resnet", tests=tests)
    absent = {it.what: it.reason for it in report.absent}
    assert "no model has a class token" in absent["salient"]
    assert {it.variant for it in report.curves} == {"random, 8x8", "random, 4x4"}
    with pytest.raises(DataError, match="resnet has no attention of a class token"):
        measured(made, tmp_path / "refused", "vit", guide="resnet", tests=tests)
    _, guided = measured(made, tmp_path / "guided", "resnet", guide="vit", tests=tests)
    assert guided.guide == "vit"
    assert {"salient", "non-salient"} <= {it.variant for it in guided.curves}


def test_a_report_shows_its_tables_and_figures(
    both: tuple[StageRun, RobustnessReport], tmp_path: Path
) -> None:
    run, found = both
    spec = ReportSpec.parse({"of": ["both"]})
    page = run_stage(reporting.run, spec, tmp_path / "page", inputs={"of[0]": run.at(None)})
    text = (page.path / "report.html").read_text()
    for words in ("both: patch drop, by", "errors under corruptions", "photographs of ice"):
        assert words in text
    assert f"{found.models[0].clean.top1_ratio:.1%}" in text.replace("\N{NO-BREAK SPACE}", "")
    assert len(list((page.path / "figures").glob("*.png"))) == len(
        list((run.path / "figures").glob("*.png"))
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": ["a", "a"]}, "each once"),
        ({"model": ["a"], "reference": "b"}, "none of the models a"),
        ({"model": "a", "tests": [{"type": "fgsm"}, {"type": "fgsm"}]}, "each type of test"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RobustnessSpec.parse({"data": "d", **fields})


def test_intervals_of_several_draws_cover_what_they_should() -> None:
    """Images differ in how often they are recognised; draws of one image go together."""
    rng = np.random.default_rng(1)
    images, draws, hits = 200, 3, 0
    for _ in range(1000):
        chance = rng.beta(0.6, 0.4, images)
        each = rng.binomial(draws, chance) / draws
        low, high = share_interval(
            float(each.mean()), float((each**2).mean()), images=images, draws=draws
        )
        hits += low <= 0.6 <= high
    assert 930 <= hits <= 970
