"""Chance in training: drawn by the place of a sample, so nothing else can change it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.feed.course import Places
from pipeline.model.noise import ForwardNoise
from pipeline.training.engine import seed_dropout
from pipeline.training.objectives.common import Setting
from tests.support.loading import places
from tests.support.training import (
    CPU,
    DROPOUT,
    NOISY,
    SEED,
    TINY,
    FakeLoader,
    setting,
    torch_engine,
)


def drawn(where: Places, *, seed: int = SEED) -> ForwardNoise:
    noise = Setting(NOISY, seed, CPU).noise(where, training=True)
    assert noise is not None
    return noise


def test_a_sample_meets_the_same_chances_in_any_batch() -> None:
    whole = drawn(places(2, range(12)))
    for size in (1, 3, 4):
        parts = [drawn(places(2, range(12)).part(i, i + size)) for i in range(0, 12, size)]
        for name in ("keep_path_BL", "kept_patches_BM"):
            together = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(together, getattr(whole, name)), name


@pytest.mark.parametrize("other", ["epoch", "source", "position", "seed"])
def test_another_place_or_seed_is_another_draw(other: str) -> None:
    rows = np.arange(40)
    where = Places(np.zeros_like(rows), np.zeros_like(rows), rows)
    if other == "seed":
        changed = drawn(where, seed=12)
    else:
        changed = drawn(replace(where, **{other: getattr(where, other) + 40}))
    assert not torch.equal(drawn(where).keep_path_BL, changed.keep_path_BL)
    assert not torch.equal(drawn(where).kept_patches_BM, changed.kept_patches_BM)


def test_branches_and_patches_go_as_often_as_the_spec_says() -> None:
    noise = drawn(places(0, range(4000)))
    skipped = (noise.keep_path_BL == 0).double().mean(dim=0)
    assert skipped.tolist() == pytest.approx([0, 0, 0.4, 0.4], abs=0.03)
    kept = torch.bincount(noise.kept_patches_BM.flatten(), minlength=4) / 4000
    assert noise.kept_patches_BM.shape == (4000, 3)
    assert kept.tolist() == pytest.approx([0.75] * 4, abs=0.03)


def test_a_pass_is_deterministic_outside_training_and_without_rates() -> None:
    where = places(0, range(4))
    assert setting(NOISY).noise(where, training=False) is None
    assert setting(TINY).noise(where, training=True) is None
    engine, batch = torch_engine(DROPOUT), FakeLoader().rows(np.arange(8))
    engine.forward_backward([batch], step=0)
    assert engine.loss(batch) == torch_engine(TINY).loss(batch)


def test_dropout_is_drawn_by_step_micro_step_and_rank() -> None:
    def numbers(**changes: int) -> list[float]:
        seed_dropout(5, **{"step": 3, "micro_step": 0, "rank": 0, **changes})
        return torch.rand(4).tolist()

    assert numbers() == numbers()
    others = [numbers(**{name: 7}) for name in ("step", "micro_step", "rank")]
    assert len({tuple(each) for each in [numbers(), *others]}) == 4
    losses = [
        torch_engine(DROPOUT).forward_backward([FakeLoader().rows(np.arange(8))], step=step)
        for step in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_recomputing_blocks_changes_no_bit() -> None:
    gradients = []
    for recomputes in (False, True):
        engine = torch_engine(DROPOUT)
        engine.model.recomputes = recomputes
        engine.forward_backward([FakeLoader().rows(np.arange(8))], step=0)
        gradients.append([p.grad for p in engine.model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
