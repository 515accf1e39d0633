import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from jobs.cli import app
from jobs.recipes import describe, find_spec, recipe_files
from pipeline.cost import model_parameters
from pipeline.cost.flops import training_flops
from pipeline.dag.experiment_file import load_experiment
from pipeline.dag.graph import expand
from schemas.errors import UsageError
from schemas.runs import PlanDocument
from tests.support.commands import document
from tests.support.containers import write_idx
from tests.support.corpora import CLASSES, write_folder

LARGE = tuple(name for name in recipe_files() if "imagenet" in name)
"""At the papers' own size, with a profile `laptop`."""
PAPER = tuple(name for name in recipe_files() if name.startswith("paper/"))
STUDIES = ("b12-masked-patch", "figure4-data-size", "figure9-cls-gap", "hybrid-small-compute",
           "table8-positions")  # fmt: skip
"""Of the paper, at a scale at which they run here."""
SETS = ("jft300m", "imagenet21k", "imagenet", "cifar10", "cifar100", "pets", "flowers")
"""Data sets of the ViT paper, as its recipes look for them below one folder."""


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_loads_with_each_of_its_profiles(name: str) -> None:
    path = find_spec(name)
    assert describe(path)
    experiment = load_experiment(path)
    for profile in (None, *experiment.profiles):
        assert expand(load_experiment(path, profile=profile)).nodes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SET/{train,test}/CLASS/000.jpg` for every data set of the paper, an image of each class."""
    root = tmp_path_factory.mktemp("root")
    for number, name in enumerate(SETS):
        write_folder(root / name, per_class=1, splits=("train", "test"), seed=number)
    return root


def planned(name: str, workspace: Path, *words: str) -> PlanDocument:
    found = document(PlanDocument, "plan", name, "--workspace", str(workspace), *words)
    assert isinstance(found, PlanDocument)
    return found


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files of Fashion-MNIST, with ten images each."""
    folder = tmp_path_factory.mktemp("scans")
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", np.zeros((10, 28, 28), np.uint8))
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    return folder


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_is_planned(
    name: str, root: Path, scans: Path, tmp_path: Path
) -> None:
    experiment = load_experiment(find_spec(name))
    data = scans if name.removeprefix("paper/") in STUDIES else root
    found = planned(name, tmp_path, "--set", f"{next(iter(experiment.stages))}.source.uri={data}")
    assert [stage.stage for stage in found.stages] == [n.name for n in expand(experiment).nodes]
    assert {stage.action for stage in found.stages} <= {"run", "pending"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_three_seeds_and_differs_where_it_says(name: str) -> None:
    study = load_experiment(find_spec(f"paper/{name}"))
    nodes = expand(study).nodes
    seeds: dict[str, set[int]] = {}
    for node in nodes:
        if node.kind in ("pretrain", "finetune"):
            seeds.setdefault(node.base_name, set()).add(node.seed)
    assert set(map(len, seeds.values())) == {3}
    measured = [node for node in nodes if node.kind == "evaluate"]
    assert len(measured) == 3 * len({node.base_name for node in measured})
    (report,) = (node for node in nodes if node.kind == "report")
    assert set(report.reads) == {node.name for node in measured}
    trained = [study.stages[base] for base in seeds if study.stages[base].kind == "pretrain"]
    assert {str(spec.augment) for spec in trained} == {str(trained[0].augment)}
    assert {spec.batch for spec in trained} == {trained[0].batch}


def test_the_sides_of_the_hybrid_study_have_equal_compute() -> None:
    stages = load_experiment(find_spec("paper/hybrid-small-compute")).stages
    for budget in ("small", "middle", "large"):
        vit, hybrid = (stages[f"{side}-{budget}"] for side in ("vit", "hybrid"))
        one, other = (
            it.duration.steps * training_flops(it.model.resolved(num_classes=10), it.objective)
            for it in (vit, hybrid)
        )
        assert other == pytest.approx(one, rel=0.01)


def test_cifar10_and_fashion_mnist_are_planned(scans: Path, root: Path, tmp_path: Path) -> None:
    fashion = planned("fashion-mnist", tmp_path, "--set", f"corpus.source.uri={scans}")
    source = (
        f"{{type: image_folder, uri: {root / 'cifar10'}, splits: {{train: train, test: test}}}}"
    )
    cifar = planned("cifar10", tmp_path, "--set", f"corpus.source={source}")
    for found in (fashion, cifar):
        made = {stage.stage for stage in found.stages}
        assert {"clean", "pretrain", "transfer", "scratch", "accuracy", "probe"} <= made
        assert {"robustness", "insight", "pixels", "report"} <= made


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_at_full_scale_is_planned_and_so_is_its_laptop(
    name: str, root: Path, tmp_path: Path
) -> None:
    words = ["--set", f"corpus.source.uri={root / 'imagenet'}"]
    large = [*words, "--set", f"downstream.source.uri={root / 'imagenet'}"]
    has_downstream = "downstream" in load_experiment(find_spec(name)).stages
    full = planned(name, tmp_path, *(large if has_downstream else words))
    tree = shutil.copytree(root / "imagenet" / "train", tmp_path / "tree")
    for number, kind in enumerate(CLASSES):
        shutil.copytree(root / "pets" / "train" / kind, tree / f"pet-{number}")
    words = ["--set", f"corpus.source.uri={tree}", "--profile", "laptop"]
    small = planned(name, tmp_path, *words)
    assert [stage.stage for stage in small.stages] == [stage.stage for stage in full.stages]
    size = {it.stage: it.estimate.get("parameters", 0) for it in full.stages}
    assert all(it.estimate.get("parameters", 0) <= size[it.stage] / 50 for it in small.stages)


@pytest.mark.parametrize("name", LARGE)
def test_a_laptop_differs_in_size_and_duration_and_not_in_method(name: str) -> None:
    full, small = (load_experiment(find_spec(name), profile=it) for it in (None, "laptop"))
    assert full.stages.keys() == small.stages.keys()
    for stage, spec in full.stages.items():
        other = small.stages[stage]
        assert type(spec) is type(other)
        if hasattr(spec, "optim"):
            fields = ("warmup_steps", "warmup_samples")
            same = {it: getattr(other.optim, it) for it in fields}
            assert spec.optim.revise(**same) == other.optim
            assert spec.augment == other.augment


def test_the_study_has_five_trials_and_scratch_may_train_as_long_as_both() -> None:
    study = load_experiment(find_spec("digits"), profile="study")
    names = [node.name for node in expand(study).nodes]
    assert sum(name.startswith("transfer[") for name in names) == 5
    assert names.count("report") == 1
    upstream, transfer, scratch = (study.stages[it] for it in ("pretrain", "transfer", "scratch"))
    assert max(scratch.search.steps) == upstream.duration.steps + max(transfer.search.steps)


def test_the_models_of_backbones_differ_and_nothing_else_does() -> None:
    stages = load_experiment(find_spec("backbones")).stages
    vit, hybrid, resnet = (stages[name] for name in ("vit", "hybrid", "resnet"))
    assert [it.model.type for it in (vit, hybrid, resnet)] == ["vit", "vit", "resnet"]
    assert vit.model.stem is None
    assert hybrid.model.stem is not None
    assert vit == hybrid.revise(model=vit.model) == resnet.revise(model=vit.model)
    counts = [model_parameters(it.model.resolved(num_classes=5)) for it in (vit, hybrid, resnet)]
    assert max(counts) < 1.25 * min(counts)


def test_the_downstream_of_photos_follows_the_corpus() -> None:
    overrides = ("corpus.source={type: tar, uri: /a.tar}", "corpus.image.max_side_px=64")
    photos = load_experiment(find_spec("photos"), overrides=overrides)
    assert photos.stages["downstream"].source == photos.stages["corpus"].source
    assert photos.stages["downstream"].image == photos.stages["corpus"].image


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'photos'"):
        find_spec("foto")


def test_every_command_stands_in_the_readme(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text()
    commands = set(get_command(app).commands) - {"config"}  # type: ignore[attr-defined]
    assert not [name for name in sorted(commands) if f"vitrail {name}" not in readme]


def test_the_readme_has_both_commands_before_line_20(checkout: Path) -> None:
    head = "\n".join((checkout / "README.md").read_text().splitlines()[:19])
    assert "make quickstart" in head
    assert "make test" in head
