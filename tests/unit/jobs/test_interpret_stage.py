"""The entry point of `interpret`, on real digits and small models."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jobs import ingest, interpret
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.interpret import study
from pipeline.evaluation.interpret.sample import Reader
from pipeline.evaluation.report.others import own_sections
from pipeline.model import build
from pipeline.model.building import state_of
from pipeline.model.saved import save_model
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.checkpoint import SavedModel
from schemas.data import IngestSpec
from schemas.errors import PausedError
from schemas.interpret import InterpretReport, InterpretSpec
from schemas.report import FigureNotes
from schemas.runs import InputArtifact
from tests.support.evaluation import artifact
from tests.support.foreign import randomise
from tests.support.models import tiny_spec
from tests.support.stages import StageRun, run_stage

SPEC = InterpretSpec(
    data="digits", model="model", sample_images=60, attention_images=12, shown_images=5
)
FIGURES = [
    "filters",
    "positions",
    "attention_distance",
    "attention_entropy",
    "looks",
    "heads",
    "feature_maps",
    "neighbourhood",
    "layers",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    spec = IngestSpec.parse(
        {
            "source": {"type": "sklearn", "name": "digits"},
            "select": {"classes": ["0", "1", "2"]},
            "split": {"test_ratio": 0.2},
            "image": {"encoding": "png"},
        }
    )
    return run_stage(ingest.run, spec, tmp_path_factory.mktemp("data") / "digits")


def saved(folder: Path, spec: BackboneSpec) -> InputArtifact:
    model = build(spec, seed=1)
    randomise(model, seed=2)
    made = artifact(folder, "model", "pretrain")
    description = SavedModel(
        spec=spec, class_names=(), trained_steps=0, key="k", data_digest="d", init_digest=None
    )
    save_model(Path(made.path) / "model", state_of(model), description)
    return made


def looked(
    folder: Path, digits: StageRun, spec: BackboneSpec, seed: int = 3, **changes: int
) -> tuple[StageRun, InterpretReport]:
    inputs = {"data": digits.at("test"), "model": saved(folder, spec)}
    asked = SPEC.revise(**changes)
    run = run_stage(interpret.run, asked, folder / "insight", inputs=inputs, seed=seed)
    return run, InterpretReport.model_validate_json((run.path / "interpret.json").read_text())


def test_every_number_and_picture_of_a_vit_is_there(tmp_path: Path, digits: StageRun) -> None:
    run, report = looked(tmp_path, digits, tiny_spec(registers=1, num_classes=0))
    assert report.absent == ()
    notes = FigureNotes.model_validate_json((run.path / "figures/figures.json").read_text())
    assert [it.file for it in notes.figures] == [f"{name}.png" for name in FIGURES]
    assert all(it.caption for it in notes.figures)
    for name in FIGURES:
        with Image.open(run.path / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    arrays = load_file(run.path / "interpret.safetensors")
    assert {name: it.shape for name, it in arrays.items()} == {
        "filters": (23, 4, 4, 3),
        "positions": (6, 2, 3),
        "looks_last": (5, 2, 3),
        "looks_heads": (5, 3, 2, 3),
        "looks_rollout": (5, 2, 3),
        "feature_maps": (5, 2, 3, 3),
        "neighbourhood": (60, 2),
    }
    assert report.attention is not None
    assert report.neighbourhood is not None
    assert report.attention.images == 12
    assert np.shape(report.attention.distances_px) == (2, 3)
    assert {it.label for it in report.shown} == {"0", "1", "2"}
    split = ShardSet.open(digits.path / "dataset").split("test")
    stored = {row.uid.hex(): row.label for row in map(split.row, range(split.num_rows))}
    uids = report.neighbourhood.uids
    assert len(set(uids)) == 60
    assert [stored[uid] for uid in uids] == list(report.neighbourhood.labels)
    assert all(report.class_names[stored[it.uid]] == it.label for it in report.shown)
    assert run.output.metrics["test/images_count"] == 60


def test_batches_change_nothing_and_the_seed_draws_other_images(digits: StageRun) -> None:
    model = build(tiny_spec(), seed=1)
    randomise(model, seed=2)
    split = ShardSet.open(digits.path / "dataset").split("test")

    def report(batch_samples: int, seed: int) -> InterpretReport:
        reader = Reader(split, (8, 12), batch_samples, threads=1, stopped=lambda: False)
        return study.interpret(model.eval(), reader, SPEC, seed=seed, tell=lambda _: None).report

    first, small, other = report(16, 3), report(7, 3), report(16, 4)
    assert first.shown == small.shown != other.shown
    assert first.attention is not None
    assert small.attention is not None
    assert first.neighbourhood is not None
    assert small.neighbourhood is not None
    assert first.neighbourhood.uids == small.neighbourhood.uids
    assert np.allclose(first.attention.distances_px, small.attention.distances_px, atol=1e-5)


def test_a_resnet_gets_what_it_has_and_is_told_the_rest(tmp_path: Path, digits: StageRun) -> None:
    spec = ResNetSpec(blocks=(1, 1), width=32, image_px=(16, 16), num_classes=3)
    run, report = looked(tmp_path, digits, spec)
    assert [it.section for it in report.absent] == ["positions", "attention", "looks"]
    assert "no attention: a model of type resnet has no attention" in run.said
    drawn = {path.stem for path in (run.path / "figures").glob("*.png")}
    assert drawn == {"filters", "feature_maps", "neighbourhood", "layers"}


def test_a_handful_of_images_is_enough(tmp_path: Path, digits: StageRun) -> None:
    run, report = looked(tmp_path, digits, tiny_spec(axial=True, pool="gap"), sample_images=3)
    assert {it.section for it in report.absent} == {"looks", "neighbourhood", "layers"}
    assert report.attention is not None
    assert report.attention.layers[:2] == ("block 1, rows", "block 1, columns")
    assert (run.path / "figures" / "attention_distance.png").is_file()


def test_a_stop_is_heard_between_two_batches(digits: StageRun) -> None:
    split = ShardSet.open(digits.path / "dataset").split("test")
    reader = Reader(split, (8, 12), 16, threads=1, stopped=lambda: True)
    with pytest.raises(PausedError, match="stopped on request"):
        study.interpret(build(tiny_spec(), seed=1), reader, SPEC, seed=3, tell=lambda _: None)


def test_a_report_shows_the_pictures_and_what_is_not_drawn(
    tmp_path: Path, digits: StageRun
) -> None:
    spec = ResNetSpec(blocks=(1, 1), width=32, image_px=(16, 16), num_classes=3)
    made = looked(tmp_path, digits, spec)[0]
    (section,) = own_sections(tmp_path / "page", [made.artifact])
    assert section.title == "What the model has learned"
    assert [it.file for it in section.figures] == [
        f"insight-{name}.png" for name in ("filters", "feature_maps", "neighbourhood", "layers")
    ]
    assert all(it.caption for it in section.figures)
    figures, absent = section.tables
    assert [row.cells[0].text for row in absent.rows] == ["positions", "attention", "looks"]
    assert "no attention" in absent.rows[1].cells[1].text
    shown = {number.value for row in figures.rows for cell in row.cells for number in cell.numbers}
    assert made.output.metrics["test/same_class_ratio"] in shown
