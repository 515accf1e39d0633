"""The search on held-out training labels: the draw, the choice, and a whole small search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.vit import build
from pipeline.training.loop import Watch
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.search import (
    Bench,
    Trial,
    choose,
    hold_out,
    run_search,
    trial_micro_batch,
    trial_optim,
)
from schemas.errors import DataError, PausedError
from schemas.objectives import SupervisedSpec
from schemas.optim import OptimSpec
from schemas.training import FinetuneSpec
from schemas.tuning import SearchSpec
from tests.support.datasets import small_set
from tests.support.models import tiny_spec
from tests.support.training import StopAfter, setting

SEARCH = SearchSpec(peak_lr=(1e-3, 1e-2), steps=(2, 6), holdout_ratio=0.25, repeats=2)


@given(
    sizes=st.lists(st.integers(2, 20), min_size=1, max_size=5),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_every_class_is_on_both_sides(sizes: list[int], ratio: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept, held = hold_out(labels, ratio, seed=seed, repeat=0)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        count = int((labels[held] == label).sum())
        assert 1 <= count <= size - 1
        assert abs(count - ratio * size) <= 1


def test_the_draw_is_fixed_by_seed_and_repeat() -> None:
    labels = np.repeat(np.arange(3), 20)
    first = hold_out(labels, 0.3, seed=1, repeat=0)[1]
    assert np.array_equal(first, hold_out(labels, 0.3, seed=1, repeat=0)[1])
    assert not np.array_equal(first, hold_out(labels, 0.3, seed=1, repeat=1)[1])
    assert not np.array_equal(first, hold_out(labels, 0.3, seed=2, repeat=0)[1])


def test_a_trial_takes_no_more_at_once_than_the_spec_allows() -> None:
    assert trial_micro_batch(512, 64) == 64
    assert trial_micro_batch(512, None) == trial_micro_batch(512, "auto") == 512
    assert trial_micro_batch(48, 64) == 48
    assert trial_micro_batch(50, 8) == 2, "halves of pairs are not mixed"
    assert trial_micro_batch(51, 8) == 3


def test_a_class_of_one_image_is_refused() -> None:
    with pytest.raises(DataError, match="class 1 has one training image"):
        hold_out(np.array([0, 0, 1]), 0.3, seed=0, repeat=0)


def test_the_mean_accuracy_decides_and_then_the_likelihood() -> None:
    figures = {(1e-3, 2): (0.5, 0.1), (1e-3, 6): (0.7, 0.9), (1e-2, 2): (0.7, 0.3)}
    trials = [
        Trial(*pair, repeat, top1 + sign * 0.1, nll)
        for pair, (top1, nll) in {**figures, (1e-2, 6): (0.6, 0.0)}.items()
        for repeat, sign in enumerate((-1, 1))
    ]
    report = choose(trials, SEARCH)
    assert [trial.holdout_top1_ratio for trial in report.trials] == pytest.approx(
        [0.5, 0.7, 0.7, 0.6]
    )
    assert report.chosen == 2


def test_a_warm_up_longer_than_the_run_becomes_a_tenth_of_it() -> None:
    optim = OptimSpec(peak_lr=1.0, warmup_steps=10)
    assert trial_optim(optim, 0.1, 10).warmup_steps == 1
    assert trial_optim(optim, 0.1, 11).warmup_steps == 10
    assert trial_optim(optim, 0.1, 11).peak_lr == 0.1
    cooled = optim.revise(schedule="constant", cooldown_steps=5)
    assert trial_optim(cooled, 0.1, 15) == cooled.revise(peak_lr=0.1)
    assert trial_optim(cooled, 0.1, 14).cooldown_steps == 1
    assert trial_optim(cooled, 0.1, 11).cooldown_steps == 1


def test_a_search_goes_on_after_a_pause_and_finds_the_same(tmp_path: Path) -> None:
    spec = FinetuneSpec.parse(
        {
            "data": "x",
            "init": None,
            "model": {"variant": "Ti", "patch_px": 4, "image_px": 8},
            "optim": {"peak_lr": 1e-3, "warmup_steps": 3},
            "batch": {"global_samples": 64},
            "duration": {"steps": 5},
        }
    )
    bench = Bench(
        spec=spec,
        search=SEARCH,
        split=small_set(tmp_path, per_class=8).split("train"),
        new_model=lambda: build(tiny_spec(num_classes=3), seed=1),
        objective=Supervised(setting(tiny_spec(num_classes=3)), SupervisedSpec(), 0.0),
        seed=5,
        device=torch.device("cpu"),
    )
    said: list[str] = []
    whole = run_search(bench, tmp_path / "whole.jsonl", Watch(say=said.append))
    assert len(said) == 8, "two draws of four pairs"
    journal = tmp_path / "paused.jsonl"
    with pytest.raises(PausedError):
        run_search(bench, journal, Watch(stop=StopAfter(10)))
    finished = len(journal.read_text().splitlines())
    journal.write_text(journal.read_text() + '{"peak_lr": 0.0')  # killed while it wrote
    again: list[str] = []
    assert run_search(bench, journal, Watch(say=again.append)) == whole
    assert 0 < finished < 8
    assert len(again) == 8 - finished
