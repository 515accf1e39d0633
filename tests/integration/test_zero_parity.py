"""ZeRO on two processes computes what plain torch computes on one; checkpoints cross worlds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.model.vit import KEY_BIAS
from pipeline.training.checkpoint import read_parameters, step_folder
from pipeline.training.engine import EngineSpec, TorchEngine
from schemas.backbones import TimmModel
from tests.support import foreign
from tests.support.training import (
    DEEP,
    DROPOUT,
    LAYERED,
    NOISY,
    OPTIM,
    RESNET,
    FakeLoader,
    Spoiled,
    engine_spec,
    mae_engine_parts,
    model,
)
from tests.support.zero_runs import STEPS, Outcome, ZeroRun, follow, run_world

TOLERANCE = 1e-5
FEW = 16
"""Steps, where nothing is averaged or saved."""
STEADY = OPTIM.revise(algorithm="sgd")
"""Standardised kernels have directions without a gradient; Adam makes steps of rounding."""
CROSSINGS = [(0, 3), (1, 2), (2, 0), (3, 1)]


@pytest.fixture(scope="module")
def references() -> dict[str, Outcome]:
    """One process of plain torch: without chances, with skipped branches and patches, and more."""
    averaged = engine_spec(optim=LAYERED)
    spoiled = replace(averaged, objective=Spoiled(averaged.objective))
    return {
        "plain": alone(model(), averaged),
        "spoiled": alone(model(), spoiled, steps=FEW),
        "noisy": alone(model(NOISY), engine_spec(NOISY), steps=FEW),
        "deep": alone(model(DEEP), engine_spec(DEEP, LAYERED), steps=FEW),
        "resnet": alone(model(RESNET), engine_spec(RESNET, STEADY), FakeLoader(RESNET), steps=FEW),
        "mae": alone(*mae_engine_parts(), steps=FEW),
    }


@pytest.fixture(scope="module")
def reference(references: dict[str, Outcome]) -> Outcome:
    return references["plain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Outcome]:
    """Every stage from the start, saved in the middle; one of them with accumulation."""
    saved = {s: {"checkpoints": str(folder / f"from{s}"), "optim": LAYERED} for s in range(4)}
    runs = [ZeroRun(f"zero{s}", s, **saved[s]) for s in range(4)]
    runs.append(ZeroRun("accumulated", 2, accumulation=2, optim=LAYERED))
    runs += [
        ZeroRun(f"spoiled{s}", s, accumulation=2, spoiled=True, optim=LAYERED, steps=FEW)
        for s in range(4)
    ]
    offloaded = {"accumulation": 2, "spoiled": True, "optim": LAYERED, "steps": FEW}
    runs += [ZeroRun(f"offloaded{s}", s, offload=True, **offloaded) for s in (1, 2, 3)]
    deep = {"spec": DEEP, "optim": LAYERED, "steps": FEW}
    runs += [ZeroRun(f"deep{s}", s, **deep) for s in range(4)]
    runs.append(ZeroRun("bf16", 2, precision="bf16", optim=LAYERED))
    runs.append(ZeroRun("noisy", 3, accumulation=2, spec=NOISY, recompute=True, steps=FEW))
    runs.append(ZeroRun("resnet3", 3, spec=RESNET, optim=STEADY, recompute=True, steps=FEW))
    runs.append(ZeroRun("mae3", 3, mae=True, steps=FEW))
    dropped = {"accumulation": 2, "spec": DROPOUT, "checkpoints": str(folder / "dropped")}
    runs += [ZeroRun(name, 2, **dropped) for name in ("undisturbed", "resumed")]
    return run_world(folder / "two", 2, runs)


@pytest.fixture(scope="module")
def one_rank(folder: Path, two_ranks: dict[str, Outcome]) -> dict[str, Outcome]:
    """Each checkpoint of two ranks gone on from by one rank, with another stage."""
    runs = [
        ZeroRun(f"{a}to{b}", b, accumulation=2, checkpoints=str(folder / f"from{a}"), optim=LAYERED)
        for a, b in CROSSINGS
    ]
    return run_world(folder / "one", 1, runs)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "plain") for name in ("zero0", "zero1", "zero2", "zero3", "accumulated")),
        *((f"deep{stage}", "deep") for stage in range(4)),
        ("noisy", "noisy"),
        ("resnet3", "resnet"),
        ("mae3", "mae"),
    ],
)
def test_two_ranks_train_as_one_process_does(
    name: str, kind: str, references: dict[str, Outcome], two_ranks: dict[str, Outcome]
) -> None:
    reference = references[kind]
    assert two_ranks[name].losses == pytest.approx(reference.losses, abs=TOLERANCE)
    assert two_ranks[name].norms == pytest.approx(reference.norms, rel=TOLERANCE)
    assert furthest_weight(two_ranks[name], reference) <= TOLERANCE


def test_chances_change_the_course(references: dict[str, Outcome]) -> None:
    plain = references["plain"].losses
    assert references["noisy"].losses != pytest.approx({s: plain[s] for s in range(FEW)}, abs=1e-2)


def test_a_resumed_run_drops_what_the_undisturbed_one_drops(two_ranks: dict[str, Outcome]) -> None:
    whole, resumed = two_ranks["undisturbed"], two_ranks["resumed"]
    assert sorted(resumed.losses) == list(range(STEPS // 2, STEPS))
    assert resumed.losses == {step: whole.losses[step] for step in resumed.losses}
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


@pytest.mark.parametrize(("source", "target"), CROSSINGS)
def test_a_checkpoint_goes_on_in_another_world_and_stage(
    source: int, target: int, reference: Outcome, one_rank: dict[str, Outcome]
) -> None:
    outcome = one_rank[f"{source}to{target}"]
    assert sorted(outcome.losses) == list(range(STEPS // 2, STEPS))
    expected = {step: reference.losses[step] for step in outcome.losses}
    assert outcome.losses == pytest.approx(expected, abs=TOLERANCE)
    assert furthest_weight(outcome, reference) <= TOLERANCE


@pytest.mark.parametrize("stage", range(4))
def test_averages_of_every_stage_are_those_of_torch(
    stage: int, two_ranks: dict[str, Outcome]
) -> None:
    outcome = two_ranks[f"zero{stage}"]
    assert outcome.saved.keys() == outcome.expected.keys() == outcome.weights.keys()
    for name, expected in outcome.expected.items():
        torch.testing.assert_close(outcome.saved[name], expected, rtol=0, atol=1e-6)
    assert furthest(outcome.saved, outcome.weights) > 1e-3, "an average is not the last weight"


@pytest.mark.parametrize(("source", "target"), CROSSINGS)
def test_averages_go_on_in_another_world_and_stage(
    source: int, target: int, folder: Path, reference: Outcome, one_rank: dict[str, Outcome]
) -> None:
    outcome = one_rank[f"{source}to{target}"]
    stored = dict(read_parameters(folder / f"from{source}" / step_folder(STEPS // 2)))
    assert outcome.found.keys() == stored.keys()
    for name, state in stored.items():
        assert torch.equal(outcome.found[name], state.average), name
    assert furthest(outcome.saved, reference.saved) <= TOLERANCE


@pytest.mark.parametrize(
    "name", [*(f"spoiled{stage}" for stage in range(4)), "offloaded1", "offloaded2", "offloaded3"]
)
def test_what_is_not_finite_on_one_rank_updates_nothing_anywhere(
    name: str, references: dict[str, Outcome], two_ranks: dict[str, Outcome]
) -> None:
    outcome, reference = two_ranks[name], references["spoiled"]
    bad = {*Spoiled.BAD_GRADIENTS, *Spoiled.BAD_LOSSES}
    assert outcome.updates == reference.updates == FEW - len(bad)
    assert {step for step, loss in outcome.losses.items() if math.isinf(loss)} == {9}
    assert {step for step, norm in outcome.norms.items() if not math.isfinite(norm)} == bad
    finite = [step for step in range(FEW) if step not in bad]
    for found, expected in ((outcome.losses, reference.losses), (outcome.norms, reference.norms)):
        wanted = pytest.approx([expected[step] for step in finite], abs=TOLERANCE, rel=TOLERANCE)
        assert [found[step] for step in finite] == wanted
    assert furthest_weight(outcome, reference) <= TOLERANCE
    assert furthest(outcome.saved, reference.saved) <= TOLERANCE


def test_bf16_arithmetic_keeps_fp32_weights_and_stays_close(
    reference: Outcome, two_ranks: dict[str, Outcome]
) -> None:
    engine = TorchEngine(model(), engine_spec(optim=LAYERED, precision="bf16"))
    for found in (follow(engine, FakeLoader(), None).losses, two_ranks["bf16"].losses):
        assert found == pytest.approx(reference.losses, rel=0.05)
        assert found != reference.losses
    assert all(weight.dtype == torch.float32 for weight in two_ranks["bf16"].weights.values())


def alone(
    trained: torch.nn.Module,
    spec: EngineSpec,
    loader: FakeLoader | None = None,
    *,
    steps: int = STEPS,
) -> Outcome:
    engine = TorchEngine(trained, spec)
    return follow(engine, loader or FakeLoader(), None, spec.optim, steps=steps)


def furthest_weight(found: Outcome, expected: Outcome) -> float:
    """Largest difference of any weight."""
    return furthest(found.weights, expected.weights)


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference; key biases have no true gradient, only rounding noise."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - tensor).abs().max())
        for name, tensor in expected.items()
        if not name.endswith(KEY_BIAS)
    )


def test_running_statistics_go_through_checkpoints_of_any_stage(tmp_path: Path) -> None:
    foreign.timm()
    options = {"channels": [8, 8, 16, 16], "stem_width": 8}
    fields = {"name": "resnet10t", "image_px": 64, "options": options}
    spec = TimmModel.parse(fields).resolved(num_classes=5)
    saved = {"spec": spec, "optim": STEADY, "checkpoints": str(tmp_path / "checkpoints")}
    run_world(tmp_path / "world", 1, [ZeroRun("first", 2, **saved), ZeroRun("resumed", 3, **saved)])
    undisturbed, resumed = (TorchEngine(model(spec), engine_spec(spec, STEADY)) for _ in range(2))
    follow(undisturbed, FakeLoader(spec), None)
    follow(resumed, FakeLoader(spec), saved["checkpoints"])
    found = resumed.buffers()
    assert any("running_mean" in name for name in found)
    for name, tensor in undisturbed.buffers().items():
        torch.testing.assert_close(found[name], tensor, rtol=TOLERANCE, atol=TOLERANCE)
