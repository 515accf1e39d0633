"""Frozen parts, low-rank adapters and linear probes: in every ZeRO stage as in plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model.vit import KEY_BIAS
from pipeline.training.checkpoint import read_parameters, step_folder
from pipeline.training.engine import TorchEngine
from schemas.tuning import FreezeSpec, LoraSpec
from tests.support.training import LAYERED, OPTIM, FakeLoader, engine_spec, model
from tests.support.zero_runs import STEPS, Outcome, ZeroRun, follow, narrowed, run_world

TOLERANCE = 1e-5
HALF = STEPS // 2
AVERAGED = LAYERED.revise(layer_decay=None)
PROBED = OPTIM.revise(ema_decay=0.9, linear_probe_steps=HALF - 5, linear_probe_lr=1e-2)
LATE = PROBED.revise(linear_probe_steps=HALF + 5)
"""The checkpoint in the middle is one of the probe; of `PROBED`, one after it."""
WAYS: dict[str, dict[str, Any]] = {
    # Of two blocks, layer 1 is the first.
    "frozen": {"freeze": FreezeSpec(up_to_layer=1), "optim": LAYERED},
    "scattered": {"freeze": FreezeSpec(all_but=("head", "blocks.0.dense1")), "optim": AVERAGED},
    "lora": {"lora": LoraSpec(rank=3, targets=("query", "value", "dense1")), "optim": LAYERED},
    "probed": {"optim": PROBED},
    "late": {"optim": LATE},
}
STAGES = {
    "frozen": (1, 3),
    "scattered": (2,),
    "lora": (0, 1, 3),
    "probed": (0, 1, 3),
    "late": (3,),
}
RUNS = [(way, stage) for way, stages in STAGES.items() for stage in stages]


def alone(way: str, checkpoints: str | None = None) -> Outcome:
    fields = WAYS[way]
    trained = narrowed(model(), fields.get("freeze"), fields.get("lora"))
    optim = fields["optim"]
    return follow(TorchEngine(trained, engine_spec(optim=optim)), FakeLoader(), checkpoints, optim)


@pytest.fixture(scope="module")
def references() -> dict[str, Outcome]:
    return {way: alone(way) for way in WAYS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Outcome]:
    runs = [
        ZeroRun(f"{way}{stage}", stage, checkpoints=str(folder / f"{way}{stage}"), **WAYS[way])
        for way, stage in RUNS
    ]
    return run_world(folder / "two", 2, runs)


@pytest.fixture(scope="module")
def one_rank(folder: Path, two_ranks: dict[str, Outcome]) -> dict[str, Outcome]:
    """Every checkpoint gone on from by one rank, in another stage."""
    runs = [
        ZeroRun(
            f"{way}{stage}",
            (stage + 2) % 4,
            accumulation=2,
            checkpoints=str(folder / f"{way}{stage}"),
            **WAYS[way],
        )
        for way, stage in RUNS
    ]
    return run_world(folder / "one", 1, runs)


@pytest.mark.parametrize(("way", "stage"), RUNS)
def test_two_ranks_train_as_one_process_does(
    way: str, stage: int, references: dict[str, Outcome], two_ranks: dict[str, Outcome]
) -> None:
    outcome, reference = two_ranks[f"{way}{stage}"], references[way]
    assert outcome.losses == pytest.approx(reference.losses, abs=TOLERANCE)
    assert outcome.norms == pytest.approx(reference.norms, rel=TOLERANCE)
    assert furthest(outcome.weights, reference.weights) <= TOLERANCE
    assert furthest(outcome.saved, reference.saved) <= TOLERANCE


@pytest.mark.parametrize(("way", "stage"), RUNS)
def test_a_checkpoint_goes_on_in_another_world_and_stage(
    way: str, stage: int, references: dict[str, Outcome], one_rank: dict[str, Outcome]
) -> None:
    outcome, reference = one_rank[f"{way}{stage}"], references[way]
    expected = {step: reference.losses[step] for step in range(HALF, STEPS)}
    assert outcome.losses == pytest.approx(expected, abs=TOLERANCE)
    assert furthest(outcome.weights, reference.weights) <= TOLERANCE
    assert furthest(outcome.saved, reference.saved) <= TOLERANCE


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_bit_equal(
    way: str, references: dict[str, Outcome], tmp_path: Path
) -> None:
    alone(way, str(tmp_path / "checkpoints"))
    resumed = alone(way, str(tmp_path / "checkpoints"))
    assert sorted(resumed.losses) == list(range(HALF, STEPS))
    for part in ("weights", "saved"):
        expected = getattr(references[way], part)
        assert all(torch.equal(getattr(resumed, part)[name], it) for name, it in expected.items())


@pytest.mark.parametrize("way", ["frozen", "scattered", "lora"])
def test_what_is_frozen_is_bit_equal_to_the_start_and_has_no_state(
    way: str, folder: Path, references: dict[str, Outcome], two_ranks: dict[str, Outcome]
) -> None:
    trained = narrowed(model(), WAYS[way].get("freeze"), WAYS[way].get("lora"))
    frozen = {name: it for name, it in trained.named_parameters() if not it.requires_grad}
    assert frozen
    assert len(frozen) < len(list(trained.parameters()))
    for outcome in (references[way], *(two_ranks[f"{way}{stage}"] for stage in STAGES[way])):
        for name, start in trained.named_parameters():
            same = torch.equal(outcome.weights[name], start)
            assert same == (name in frozen), name
            assert torch.equal(outcome.saved[name], outcome.weights[name]) == (name in frozen)
    for stage in STAGES[way]:
        found = read_parameters(folder / f"{way}{stage}" / step_folder(HALF))
        kept = {name: len(state.kept) for name, state in found}
        assert kept == {name: 0 if name in frozen else 3 for name, _ in trained.named_parameters()}


def test_the_head_learns_alone_and_then_all_do_with_a_new_optimizer() -> None:
    start = model()
    engine = TorchEngine(start, engine_spec(optim=LATE))
    before = {name: it.clone() for name, it in start.named_parameters()}
    follow(engine, FakeLoader(), None, LATE, steps=LATE.linear_probe_steps)
    moved = {name for name, it in start.named_parameters() if not torch.equal(it, before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert engine.updates == LATE.linear_probe_steps
    # What follows is a training of its own from here, with a new optimizer.
    fresh = model()
    fresh.load_state_dict(start.state_dict())
    plain = LATE.revise(linear_probe_steps=0, linear_probe_lr=None)
    other = TorchEngine(fresh, engine_spec(optim=plain))
    stream = FakeLoader().batches(LATE.linear_probe_steps)
    for step in range(LATE.linear_probe_steps, STEPS):
        batch = next(stream)
        pair = [each.forward_backward(batch, step=step) for each in (engine, other)]
        assert pair[0] == pair[1]
        assert engine.step(1e-3) == other.step(1e-3)
    assert engine.updates == other.updates == STEPS - LATE.linear_probe_steps
    for (name, found), (_, expected) in zip(engine.weights(), other.weights(), strict=True):
        assert torch.equal(found, expected), name


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference; key biases have no true gradient, only rounding noise."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - tensor).abs().max())
        for name, tensor in expected.items()
        if not name.endswith(KEY_BIAS)
    )
