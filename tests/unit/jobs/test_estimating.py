"""`vitrail estimate`, on specs whose corpora are not here."""

from pathlib import Path

import pytest

from jobs.estimating import Question, estimate_document
from jobs.recipes import recipe_files
from jobs.target import Target
from pipeline.cost import DEVICES
from pipeline.dag.experiment_file import load_experiment
from pipeline.dag.graph import expand
from schemas.errors import UsageError
from schemas.estimates import EstimateDocument
from schemas.manifest import DATASET_FOLDER
from schemas.training import TrainingSpec
from tests.support.commands import answer, document
from tests.support.datasets import small_set
from tests.support.workspaces import keep

TEXT = """\
name: large
seed: 1
stages:
  corpus:
    kind: ingest
    source: {type: image_folder, uri: /nowhere, splits: {train: train, test: test}}
  pretrain:
    kind: pretrain
    data: corpus
    model: {variant: L, patch_px: 16, image_px: 224}
    optim: {peak_lr: 1.0e-3, warmup_steps: 10_000}
    batch: {global_samples: 4096}
    duration: {epochs: 90}
    precision: bf16
    resources: {workers: 8, micro_batch: auto}
"""
NOTHING = Question(gpu=(), gpus=None, images=None, price_per_gpu_hour=None, mfu=None)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "large.yaml"
    file.write_text(TEXT)
    return file


def asked(spec: str | Path, workspace: Path, *words: str) -> EstimateDocument:
    found = document(EstimateDocument, "estimate", str(spec), "--workspace", str(workspace), *words)
    assert isinstance(found, EstimateDocument)
    return found


def test_hours_and_cost_follow_from_what_is_said(spec: Path, tmp_path: Path) -> None:
    words = ("--gpu", "h100", "--gpus", "8", "--images", "14000000")
    found = asked(spec, tmp_path, *words, "--price-per-gpu-hour", "2.5", "--mfu", "0.4")
    (stage,) = found.stages
    (device,) = stage.devices
    assert stage.steps == (90 * (14_000_000 // 4096))
    assert stage.images == stage.steps * 4096
    assert stage.training_flops_per_image == pytest.approx(369.6e9, rel=0.01)
    peak = 0.4 * 8 * DEVICES["h100"].bf16_flops
    assert device.images_per_second == pytest.approx(peak / stage.training_flops_per_image)
    assert device.hours == pytest.approx(stage.images / device.images_per_second / 3600)
    assert device.cost == pytest.approx(device.hours * 8 * 2.5)
    assert device.micro_batch * device.accumulation * 8 == 4096
    assert device.fits
    assert [memory.zero_stage for memory in stage.memory] == [0, 1, 2, 3]


def test_without_a_corpus_it_says_what_is_missing(spec: Path, tmp_path: Path) -> None:
    (stage,) = asked(spec, tmp_path).stages
    assert stage.problem is not None
    assert "--images" in stage.problem
    assert {device.hours for device in stage.devices} == {None}
    assert len(stage.devices) > 3


def test_the_images_of_a_corpus_that_is_made_are_counted(spec: Path, tmp_path: Path) -> None:
    data = small_set(tmp_path / "made")
    files = tmp_path / "prepared"
    files.mkdir()
    (files / DATASET_FOLDER).symlink_to(data.folder)
    stages = load_experiment(spec, profile=None, overrides=()).stages
    keep(tmp_path, files, experiment="large", stage="corpus", spec=stages["corpus"])
    found = asked(spec, tmp_path, "--set", "pretrain.batch.global_samples=8")
    images = data.split("train").num_rows
    assert found.stages[0].steps == 90 * (images // 8)
    assert found.stages[0].problem is None


def test_only_as_many_gpus_count_as_share_the_batch_evenly(spec: Path, tmp_path: Path) -> None:
    assert asked(spec, tmp_path, "--gpus", "100").stages[0].gpus == 64


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_training_stage_of_a_recipe_is_estimated(name: str, tmp_path: Path) -> None:
    found = estimate_document(Target(name, tmp_path, None, ()), NOTHING)
    graph = expand(load_experiment(recipe_files()[name]))
    trained = [node.name for node in graph.nodes if isinstance(node.spec, TrainingSpec)]
    assert [stage.stage for stage in found.stages] == trained != []
    for stage in found.stages:
        init = graph.node(stage.stage).inputs.get("init")
        is_foreign = init is not None and graph.node(init.stage).kind == "import"
        assert (stage.parameters is None) == is_foreign, "of imported weights nothing is known yet"
        assert all(device.fits for device in stage.devices)


EXAFLOPS = {
    "B32": 55, "B16": 224, "L32": 196, "L16": 783, "L16-14ep": 1567, "H14-14ep": 4262,
    "R50x1": 50, "R50x2": 199, "R101x1": 96, "R152x1": 141, "R152x2": 563, "R152x2-14ep": 1126,
    "R200x3-14ep": 3306, "R50-B32": 106, "R50-B16": 274, "R50-L32": 246, "R50-L16": 859,
    "R50-L16-14ep": 1668,
}  # fmt: skip
"""Pre-training compute as the ViT paper prints it, Table 6."""


def test_the_compute_of_table_6_is_the_papers(tmp_path: Path) -> None:
    found = estimate_document(
        Target("paper/table6", tmp_path, None, ()),
        Question(gpu=("h100",), gpus=None, images=303_000_000, price_per_gpu_hour=None, mfu=None),
    )
    ours = {stage.stage: stage.flops for stage in found.stages if stage.kind == "pretrain"}
    assert set(ours) == {f"pretrain[model={model}]" for model in EXAFLOPS}
    for model, theirs in EXAFLOPS.items():
        assert ours[f"pretrain[model={model}]"] == pytest.approx(theirs * 1e18, rel=0.04)


def test_the_table_names_gpus_and_says_what_is_assumed(spec: Path, tmp_path: Path) -> None:
    words = ("estimate", str(spec), "--workspace", str(tmp_path), "--gpu", "V100")
    text = answer(*words, "--images", "9000")
    assert "V100 32 GB" in text
    assert "304 M parameters" in text
    assert "Assumed: 35% of a GPU's peak" in text


def test_an_unknown_gpu_is_told_with_those_that_are_known(spec: Path, tmp_path: Path) -> None:
    words = ("estimate", str(spec), "--workspace", str(tmp_path), "--gpu", "h1000")
    with pytest.raises(UsageError, match="--gpu h1000 is not known; allowed are h100") as told:
        answer(*words)
    assert told.value.hint == "--gpu h100"
