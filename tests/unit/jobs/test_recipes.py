from pathlib import Path

import pytest
from typer.main import get_command

from jobs.cli import app
from jobs.recipes import describe, find_spec, recipe_files
from pipeline.cost import model_parameters
from pipeline.dag.experiment_file import load_experiment
from pipeline.dag.graph import expand
from schemas.errors import UsageError


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_loads_with_each_of_its_profiles(name: str) -> None:
    path = find_spec(name)
    assert describe(path)
    experiment = load_experiment(path)
    for profile in (None, *experiment.profiles):
        assert expand(load_experiment(path, profile=profile)).nodes


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
