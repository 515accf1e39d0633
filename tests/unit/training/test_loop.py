"""The loop: learning, stopping, going on, and what it tells."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.vit import KEY_BIAS
from pipeline.training.engine import TorchEngine
from pipeline.training.loop import Watch, train
from pipeline.training.meter import Gauge
from schemas.checkpoint import RunProgress
from schemas.errors import PausedError
from schemas.model import ViTSpec
from schemas.optim import OptimSpec
from schemas.runs import TrainingPace
from tests.support.training import (
    DROPOUT,
    NOISY,
    OPTIM,
    TINY,
    FakeLoader,
    Recorded,
    Spoiled,
    StopAfter,
    engine_spec,
    keeper,
    model,
    torch_engine,
)

STEPS = 12


def run(engine: TorchEngine, root: Path | None = None, **watch: object) -> RunProgress:
    return train(
        engine,
        FakeLoader(),
        optim=OPTIM,
        total_steps=STEPS,
        keeper=keeper(root) if root else None,
        watch=Watch(**watch),  # type: ignore[arg-type]
    )


class ShownPaces:
    """A `PaceLog` in memory."""

    def __init__(self) -> None:
        self.paces: list[TrainingPace] = []

    def show(self, pace: TrainingPace) -> None:
        self.paces.append(pace)


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: state.weight for name, state in engine.state()}


def test_a_tiny_model_learns_fixed_images_by_heart() -> None:
    optim = OptimSpec(peak_lr=1e-2, warmup_steps=5)
    engine = torch_engine(optim=optim)
    loader = FakeLoader(samples=64, global_samples=64)
    train(engine, loader, optim=optim, total_steps=120, keeper=None, watch=Watch())
    assert engine.loss(loader.rows(np.arange(64))) < 0.05


@pytest.mark.parametrize(
    ("stop_after", "spec"), [(1, TINY), (4, TINY), (5, TINY), (11, TINY), (7, DROPOUT)]
)
def test_a_run_that_was_stopped_ends_bit_equal(
    stop_after: int, spec: ViTSpec, tmp_path: Path
) -> None:
    undisturbed = torch_engine(spec)
    expected = run(undisturbed)
    with pytest.raises(PausedError, match=f"after step {stop_after} of 12, with a checkpoint"):
        run(torch_engine(spec), tmp_path, stop=StopAfter(stop_after))
    resumed = torch_engine(spec)
    assert run(resumed, tmp_path) == expected
    for name, weight in weights(undisturbed).items():
        assert torch.equal(weights(resumed)[name], weight)


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    run(torch_engine(), tmp_path)
    (tmp_path / "step-00000012" / "state.json").unlink()  # as if killed while it was written
    said: list[str] = []
    log = Recorded()
    result = train(
        torch_engine(),
        FakeLoader(),
        optim=OPTIM,
        total_steps=STEPS,
        keeper=keeper(tmp_path, said=said),
        watch=Watch(metrics=log),
    )
    assert sorted(log.points["train/loss"]) == [11, 12]
    assert result == run(torch_engine())
    assert "state.json is missing" in said[0]
    assert said[1] == "goes on from step 10, written by torch x1"


def test_a_finished_run_only_loads(tmp_path: Path) -> None:
    expected = run(torch_engine(), tmp_path)
    log = Recorded()
    assert run(torch_engine(), tmp_path, metrics=log) == expected
    assert log.points == {}


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_moments_and_averages_survive_with_either_optimizer(algorithm: str, tmp_path: Path) -> None:
    optim = OPTIM.revise(algorithm=algorithm, ema_decay=0.8)
    ends = []
    for stop in (None, StopAfter(7)):
        engine = torch_engine(optim=optim)
        kwargs = {"optim": optim, "total_steps": STEPS}
        try:
            keep = keeper(tmp_path) if stop else None
            train(engine, FakeLoader(), **kwargs, keeper=keep, watch=Watch(stop=stop))
        except PausedError:
            engine = torch_engine(optim=optim)
            train(engine, FakeLoader(), **kwargs, keeper=keeper(tmp_path), watch=Watch())
        ends.append(dict(engine.state()))
    for name, state in ends[0].items():
        assert torch.equal(state.weight, ends[1][name].weight)
        assert torch.equal(state.moments[0], ends[1][name].moments[0])
        assert torch.equal(state.average, ends[1][name].average)


def test_gradients_that_are_not_finite_change_nothing(tmp_path: Path) -> None:
    optim = OPTIM.revise(ema_decay=0.8)
    spec = engine_spec(optim=optim)
    engine = TorchEngine(model(), replace(spec, objective=Spoiled(spec.objective)))
    stream = FakeLoader(micro_batch=8).batches(0)
    for step in range(12):
        before = dict(engine.state())
        loss = engine.forward_backward(next(stream), step=step)
        finite = math.isfinite(engine.step(1e-3))
        assert finite == (step not in (*Spoiled.BAD_GRADIENTS, *Spoiled.BAD_LOSSES))
        assert math.isinf(loss) == (step in Spoiled.BAD_LOSSES)
        for name, state in engine.state():
            now, old = ((it.weight, *it.kept) for it in (state, before[name]))
            same = all(torch.equal(a, b) for a, b in zip(now, old, strict=True))
            assert same != finite or name.endswith(KEY_BIAS)
    assert engine.updates == 9
    counts = {int(engine.optimizer.state[it]["step"]) for it in engine.model.parameters()}
    assert counts == {9}


def test_without_averages_the_model_is_the_weights() -> None:
    engine = torch_engine()
    run(engine)
    assert all(torch.equal(it, weights(engine)[name]) for name, it in engine.weights())
    unmoved = torch_engine(optim=OPTIM.revise(ema_decay=0.8))
    assert all(torch.equal(it, weights(unmoved)[name]) for name, it in unmoved.weights())


@pytest.mark.parametrize("spec", [TINY, NOISY])
def test_accumulated_micro_batches_are_one_batch(spec: ViTSpec) -> None:
    losses = []
    for micro_batch in (16, 4):
        engine = torch_engine(spec)
        stream = FakeLoader(micro_batch=micro_batch).batches(0)
        first = engine.forward_backward(next(stream), step=0)
        engine.step(1e-3)
        losses.append([first, engine.forward_backward(next(stream), step=1)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_gradients_are_clipped_as_torch_does() -> None:
    norms = {}
    for clip in (None, 0.01):
        engine = torch_engine(optim=OPTIM.revise(clip_norm=clip))
        engine.forward_backward(next(FakeLoader().batches(0)), step=0)
        reference = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.model.parameters() if p.grad is not None]
        )
        norms[clip] = engine.step(1e-3)
        assert norms[clip] == pytest.approx(reference.item(), rel=1e-6)
    assert norms[None] == norms[0.01], "the norm that is told is the one before clipping"


def test_curves_have_the_first_and_the_last_step_and_few_enough_points() -> None:
    log = Recorded()
    optim = OPTIM.revise(warmup_steps=0)
    train(
        torch_engine(optim=optim),
        FakeLoader(global_samples=2),
        optim=optim,
        total_steps=450,
        keeper=None,
        watch=Watch(metrics=log),
    )
    steps = sorted(log.points["train/loss"])
    assert steps[:3] == [1, 2, 4]
    assert steps[-1] == 450
    assert len(steps) <= 500
    assert log.points["train/learning_rate"][1] == OPTIM.peak_lr
    assert {450, 1} <= log.points["train/images_per_second"].keys()
    assert log.points["train/eta_seconds"].keys() == set(steps) - {1}
    assert log.points["train/eta_seconds"][450] == 0
    assert "train/mfu_ratio" not in log.points, "nothing is known of the device"


def test_the_bar_is_told_every_step_and_figures_know_the_device() -> None:
    log, shown = Recorded(), ShownPaces()
    gauge = Gauge(flops_per_image=1e6, peak_flops=1e12, memory_bytes=lambda: 4096)
    run(torch_engine(), metrics=log, pace=shown, gauge=gauge)
    assert [(it.step, it.total_steps) for it in shown.paces] == [
        (step, STEPS) for step in range(1, STEPS + 1)
    ]
    assert [it.loss for it in shown.paces] == list(log.points["train/loss"].values())
    assert shown.paces[0].images_per_second is None
    assert shown.paces[-1].eta_seconds == 0
    assert set(log.points["train/memory_bytes"].values()) == {4096}
    rates = log.points["train/images_per_second"]
    for step, ratio in log.points["train/mfu_ratio"].items():
        assert ratio == pytest.approx(rates[step] * 1e6 / 1e12)


def test_progress_lines_come_ten_times_and_name_the_loss() -> None:
    said: list[str] = []
    run(torch_engine(), say=said.append)
    assert re.fullmatch(r"step 12 of 12, loss \d+\.\d{4}, [\d,]+ images/s", said[-1])
    assert re.search(r"images/s, \d:\d\d:\d\d left$", said[1])
    assert len(said) <= 12
