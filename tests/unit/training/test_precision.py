"""Half precision: how the loss is scaled in fp16, and that a stop changes nothing of it."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipeline.training.engine import TorchEngine
from pipeline.training.keeper import CheckpointKeeper
from pipeline.training.loop import Watch, train
from schemas.checkpoint import LossScale, RunProgress
from schemas.errors import PausedError
from tests.support.training import (
    OPTIM,
    FakeLoader,
    Recorded,
    StopAfter,
    engine_spec,
    keeper,
    model,
)

STEPS = 12


def fp16(
    root: Path | None, *, stop: StopAfter | None = None, said: list[str] | None = None
) -> tuple[RunProgress, TorchEngine, Recorded]:
    """A run in fp16: its end, its engine, and what it logged."""
    engine, log = TorchEngine(model(), engine_spec(precision="fp16")), Recorded()
    keep: CheckpointKeeper | None = keeper(root) if root else None
    watch = Watch(metrics=log, stop=stop, say=(said if said is not None else []).append)
    end = train(engine, FakeLoader(), optim=OPTIM, total_steps=STEPS, keeper=keep, watch=watch)
    return end, engine, log


def test_the_scale_halves_when_gradients_do_not_fit_and_doubles_in_time() -> None:
    scale = LossScale(factor=8.0, good_steps=7)
    assert scale.after_step(fits=False) == LossScale(factor=4.0)
    assert scale.after_step(fits=True) == LossScale(factor=8.0, good_steps=8)
    last = LossScale(factor=8.0, good_steps=LossScale.GROWS_AFTER - 1)
    assert last.after_step(fits=True) == LossScale(factor=16.0)
    assert LossScale(factor=1.0).after_step(fits=False) == LossScale(factor=1.0)


def test_only_what_a_smaller_scale_cannot_mend_counts_as_bad() -> None:
    start = RunProgress(step=4, bad_steps=1, loss_scale=LossScale(factor=2.0, good_steps=3))
    too_large = start.after_step(1.5, math.inf)
    assert (too_large.bad_steps, too_large.scale, too_large.train_loss) == (0, 1.0, 1.5)
    at_the_end = too_large.after_step(1.5, math.inf)
    assert (at_the_end.bad_steps, at_the_end.scale) == (1, 1.0)
    no_loss = start.after_step(math.nan, math.nan)
    assert (no_loss.bad_steps, no_loss.loss_scale) == (2, start.loss_scale)
    assert RunProgress(step=0).scale == 1.0


def test_a_run_tells_its_scale_and_carries_it_through_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 1)
    said: list[str] = []
    expected, undisturbed, log = fp16(None, said=said)
    grown = [value for _, value in sorted(log.points["train/loss_scale"].items())]
    assert grown[0] == LossScale().factor / 2, "the first gradients are too large"
    assert any(then < now for then, now in pairwise(grown)), "it doubled after each good step"
    assert any("too large for fp16" in line and "loss scale" in line for line in said)
    assert undisturbed.updates < STEPS
    for stop_after in (4, 7):
        root = tmp_path / str(stop_after)
        with pytest.raises(PausedError):
            fp16(root, stop=StopAfter(stop_after))
        end, resumed, _ = fp16(root)
        assert (end, resumed.updates) == (expected, undisturbed.updates)
        for name, state in undisturbed.state():
            assert torch.equal(dict(resumed.state())[name].weight, state.weight), name
