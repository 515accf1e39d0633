"""What an objective adds to a model, counted from specs and held against the real thing."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cost import estimate, objective_flops, objective_parameters, vit_parameters
from pipeline.model.mae import build_mae
from pipeline.model.masked import Corruption, build_masked
from pipeline.model.noise import ForwardNoise
from schemas.objectives import DistillationSpec, MaeSpec, MaskedPatchSpec
from tests.support.dag import graph_of
from tests.support.models import tiny_spec

SHAPES: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pool": "gap", "position": "sincos_2d"},
    "many leading": {"registers": 3, "distillation_token": True, "class_position": False},
}
MAE = MaeSpec(decoder_width=16, decoder_depth=2, decoder_heads=2, mask_ratio=0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_operations_of_both_are_exact(shape: str) -> None:
    spec = tiny_spec(num_classes=0, **SHAPES[shape])
    pixels = torch.empty(1, 3, 8, 12, device="meta")
    grid = torch.empty(1, 6, dtype=torch.int64, device="meta")
    corruption = Corruption(grid, torch.empty(1, 6, dtype=torch.bool, device="meta"))
    pairs = [
        (MaskedPatchSpec(), build_masked(spec, seed=1), {"corruption": corruption}),
        (
            MAE,
            build_mae(spec, MAE.decoder(spec), seed=1),
            {"noise": ForwardNoise(None, grid[:, :3])},
        ),
    ]
    for objective, model, asked in pairs:
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert vit_parameters(spec) + objective_parameters(objective, spec) == counted
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model.to("meta")(pixels, **asked)
        assert objective_flops(objective, spec) == counter.get_total_flops()
    assert objective_parameters(DistillationSpec(), spec) == 0


def test_a_plan_knows_what_such_a_stage_costs() -> None:
    def costs(*overrides: str) -> dict[str, float]:
        graph = graph_of(*overrides)
        return estimate(graph.node("pretrain"), graph, lambda _source: 1000)

    plain = costs()
    for objective in ("masked_patch", "mae"):
        found = costs(f"pretrain.objective={{type: {objective}}}")
        assert found["parameters"] != plain["parameters"]
        assert found["flops"] != plain["flops"]


def test_a_teacher_is_read_by_the_graph() -> None:
    graph = graph_of("transfer.objective={type: distillation}", "transfer.teacher=pretrain")
    assert graph.node("transfer").inputs["teacher"].stage == "pretrain"
