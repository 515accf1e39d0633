"""ZeRO on two processes computes what plain torch computes on one; checkpoints cross worlds."""

from pathlib import Path

import pytest
import torch

from pipeline.model.vit import KEY_BIAS
from pipeline.training.engine import TorchEngine
from tests.support.training import FakeLoader, engine_spec, model, torch_engine
from tests.support.zero_runs import STEPS, Outcome, ZeroRun, follow, run_world

TOLERANCE = 1e-5
CROSSINGS = [(0, 3), (1, 2), (2, 0), (3, 1)]


@pytest.fixture(scope="module")
def reference() -> Outcome:
    engine = torch_engine()
    losses, norms = follow(engine, FakeLoader(), None)
    return Outcome(losses, norms, {name: state.weight for name, state in engine.state()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Outcome]:
    """Every stage from the start, saved in the middle; one of them with accumulation."""
    runs = [ZeroRun(f"zero{s}", s, checkpoints=str(folder / f"from{s}")) for s in range(4)]
    runs.append(ZeroRun("accumulated", 2, accumulation=2))
    runs.append(ZeroRun("bf16", 2, precision="bf16"))
    return run_world(folder / "two", 2, runs)


@pytest.fixture(scope="module")
def one_rank(folder: Path, two_ranks: dict[str, Outcome]) -> dict[str, Outcome]:
    """Each checkpoint of two ranks gone on from by one rank, with another stage."""
    runs = [
        ZeroRun(f"{a}to{b}", b, accumulation=2, checkpoints=str(folder / f"from{a}"))
        for a, b in CROSSINGS
    ]
    return run_world(folder / "one", 1, runs)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "accumulated"])
def test_two_ranks_train_as_one_process_does(
    name: str, reference: Outcome, two_ranks: dict[str, Outcome]
) -> None:
    assert two_ranks[name].losses == pytest.approx(reference.losses, abs=TOLERANCE)
    assert two_ranks[name].norms == pytest.approx(reference.norms, rel=TOLERANCE)
    assert furthest_weight(two_ranks[name], reference) <= TOLERANCE


@pytest.mark.parametrize(("source", "target"), CROSSINGS)
def test_a_checkpoint_goes_on_in_another_world_and_stage(
    source: int, target: int, reference: Outcome, one_rank: dict[str, Outcome]
) -> None:
    outcome = one_rank[f"{source}to{target}"]
    assert sorted(outcome.losses) == list(range(STEPS // 2, STEPS))
    expected = {step: reference.losses[step] for step in outcome.losses}
    assert outcome.losses == pytest.approx(expected, abs=TOLERANCE)
    assert furthest_weight(outcome, reference) <= TOLERANCE


def test_bf16_arithmetic_keeps_fp32_weights_and_stays_close(
    reference: Outcome, two_ranks: dict[str, Outcome]
) -> None:
    engine = TorchEngine(model(), engine_spec(precision="bf16"))
    losses, _ = follow(engine, FakeLoader(), None)
    for found in (losses, two_ranks["bf16"].losses):
        assert found == pytest.approx(reference.losses, rel=0.05)
        assert found != reference.losses
    assert all(weight.dtype == torch.float32 for weight in two_ranks["bf16"].weights.values())


def furthest_weight(found: Outcome, expected: Outcome) -> float:
    """Largest difference of any weight; key biases have no true gradient, only rounding noise."""
    assert found.weights.keys() == expected.weights.keys()
    return max(
        float((found.weights[name] - weight).abs().max())
        for name, weight in expected.weights.items()
        if not name.endswith(KEY_BIAS)
    )
