"""What a user can get wrong, and the sentence and exit code that answer."""

import os
from pathlib import Path

import pytest

from tests.support.commands import vitrail

SPEC = """
name: small
seed: 1
stages:
  upstream: {kind: ingest, source: {type: sklearn, name: digits}}
  pretrain:
    kind: pretrain
    data: upstream
    model: {variant: Ti, patch_px: 4, image_px: 8}
    optim: {peak_lr: 1e-3}
    batch: {global_samples: 16}
    duration: {steps: 2}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SPEC)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("peak_lr", "peak_rl"), ("run.yaml:10", "stages.pretrain.optim", "'peak_lr'")),
        (("steps: 2", "steps: two"), ("run.yaml:12", "duration.steps", "'two'")),
        (("data: upstream", "data: upsteam"), ("run.yaml:8", "did you mean 'upstream'")),
        (("data: upstream", "data: pretrain"), ("run.yaml:8", "ingest or filter")),
        (("kind: pretrain", "kind: pretrian"), ("run.yaml", "did you mean 'pretrain'")),
        (("variant: Ti", "variant: XXL"), ("pretrain.model.variant", "'Ti' or 'S'")),
    ],
)
def test_a_broken_spec_is_refused_with_place_and_remedy(
    spec: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    spec.write_text(SPEC.replace(*change))
    done = vitrail("plan", "run.yaml", cwd=spec.parent)
    assert done.code == 3, done.stderr
    assert not done.stdout
    for word in words:
        assert word in done.stderr


def test_stages_in_a_circle_are_drawn(spec: Path) -> None:
    circle = "\n  a: {kind: filter, data: b, against: [upstream]}"
    circle += "\n  b: {kind: filter, data: a, against: [upstream]}\n"
    spec.write_text(SPEC + circle)
    done = vitrail("plan", "run.yaml", cwd=spec.parent)
    assert done.code == 3
    assert "a -> b -> a" in done.stderr or "b -> a -> b" in done.stderr


def test_a_corpus_that_is_not_there_is_an_error_of_the_spec(tmp_path: Path) -> None:
    done = vitrail("run", "photos", "--set", "corpus.source.uri=nowhere", cwd=tmp_path)
    assert done.code == 3
    assert "nowhere does not exist" in done.stderr
    assert "--set corpus.source.uri=PATH" in done.stderr


def test_a_recipe_with_a_typo_finds_the_nearest(tmp_path: Path) -> None:
    done = vitrail("run", "digist", cwd=tmp_path)
    assert done.code == 2
    assert "did you mean 'digits'" in done.stderr


def test_a_command_with_a_typo_finds_the_nearest(tmp_path: Path) -> None:
    done = vitrail("rnu", "digits", cwd=tmp_path)
    assert done.code == 2
    assert "run" in done.stderr


def test_a_cluster_that_does_not_answer_is_told_in_a_sentence(spec: Path) -> None:
    done = vitrail("run", "run.yaml", "--address", "127.0.0.1:1", cwd=spec.parent)
    assert done.code == 4
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_jobs_server_that_does_not_answer_is_told_in_a_sentence(spec: Path) -> None:
    done = vitrail("submit", "run.yaml", "--address", "http://127.0.0.1:1", cwd=spec.parent)
    assert done.code == 4
    assert "Traceback" not in done.stderr


def test_a_workspace_that_cannot_be_made_is_told_in_a_sentence(spec: Path) -> None:
    (spec.parent / "file").write_text("in the way")
    done = vitrail("run", "run.yaml", "--workspace", "file/ws", cwd=spec.parent)
    assert done.code == 4, done.stderr
    assert "--workspace" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workspace_without_permission_is_told_in_a_sentence(spec: Path) -> None:
    locked = spec.parent / "locked"
    locked.mkdir(mode=0o500)
    done = vitrail("run", "run.yaml", "--workspace", "locked/ws", cwd=spec.parent)
    assert done.code == 4


def test_init_writes_a_recipe_that_plans(tmp_path: Path) -> None:
    assert vitrail("init", "mine.yaml", "--recipe", "digits", cwd=tmp_path).code == 0
    assert vitrail("init", "mine.yaml", "--recipe", "digits", cwd=tmp_path).code == 2
    planned = vitrail("plan", "mine.yaml", cwd=tmp_path)
    assert planned.code == 0, planned.stderr
    assert "disk: at most" in planned.stdout
    assert not (tmp_path / ".vitrail").exists(), "planning writes nothing"


def test_unknown_runs_are_told_in_a_sentence(tmp_path: Path) -> None:
    for words in (("status", "x"), ("logs", "x"), ("cancel", "x"), ("status",)):
        done = vitrail(*words, cwd=tmp_path)
        assert done.code == 2, words
        assert "no run" in done.stderr
