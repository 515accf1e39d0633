"""FLOPs and kept activations of a training step, stated from specs and counted by torch."""

from typing import Any

import pytest

from pipeline.cost import activation_bytes, trained_parameters, training_flops
from schemas.backbones import ResNetSpec
from schemas.model import ViTSpec
from schemas.objectives import MaeSpec, MaskedPatchSpec
from tests.support.costs import SUPERVISED, Case, count
from tests.support.models import tiny_spec

SHAPE: dict[str, Any] = {"width": 48, "mlp_dim": 96, "image_px": (16, 24)}
STEM = {"blocks": (1, 2), "width": 32}
MAE = MaeSpec(decoder_width=24, decoder_depth=2, decoder_heads=2, mask_ratio=0.5)


def shaped(**changes: Any) -> ViTSpec:
    return tiny_spec(**{**SHAPE, **changes})


def unlabelled(**changes: Any) -> ViTSpec:
    return shaped(num_classes=0, **changes)


CASES = [
    Case("class token", shaped()),
    Case("mean, no positions", shaped(pool="gap", position="none")),
    Case("attention pooling", shaped(pool="map", position="learned_2d")),
    Case("relative", shaped(position="relative", qk_norm=True)),
    Case("axial", shaped(axial=True, pool="map", position="relative")),
    Case("two heads", shaped(distillation_token=True, registers=3, position="sincos_2d")),
    Case("all parts", shaped(layer_scale=0.1, qk_norm=True, dropout=0.1, drop_path=0.3)),
    Case("patches dropped", shaped(patch_dropout=0.25, position_at="every_layer")),
    Case("hidden head", shaped(hidden_head=True, norm_at="pooled", position_at="shared")),
    Case("hybrid", shaped(stem=STEM, patch_px=8, image_px=(32, 48))),
    Case("resnet", ResNetSpec(blocks=(2, 1), width=32, image_px=(40, 36), num_classes=5)),
    Case("masked patches", unlabelled(registers=2), MaskedPatchSpec()),
    Case("autoencoder", unlabelled(drop_path=0.3), MAE),
]
VARIANTS = [
    (bf16, recompute, samples)
    for bf16, recompute, samples in [(False, False, 4), (True, False, 2), (False, True, 6)]
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["fp32", "bf16", "recomputed"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_step_costs_what_is_stated(case: Case, variant: tuple[bool, bool, int]) -> None:
    bf16, recompute, samples = variant
    counted = count(Case(case.name, case.model, case.objective, bf16, recompute, samples))
    assert trained_parameters(case.model, case.objective) == counted.parameters
    flops = training_flops(case.model, case.objective, recompute=recompute)
    assert samples * flops == counted.flops
    kept = activation_bytes(
        case.model, case.objective, samples=samples, bf16=bf16, recompute=recompute
    )
    assert kept == pytest.approx(counted.saved_bytes, rel=0.05)


def test_attention_in_tiles_keeps_nothing_of_the_square_of_the_length() -> None:
    def kept(side: int) -> int:
        spec = shaped(image_px=(side, side), pool="gap")
        return activation_bytes(spec, SUPERVISED, samples=1, bf16=False)

    assert kept(64) / kept(16) == pytest.approx(16, rel=0.01)
