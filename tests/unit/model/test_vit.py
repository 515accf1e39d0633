"""The ViT against the authors' figures and against plain torch."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline.cost import vit_parameters
from pipeline.model.backbone import normalise
from pipeline.model.vit import KEY_BIAS, ViT, build, patchify
from schemas.model import ModelSpec, ResNetStemSpec
from tests.support.models import tiny_spec, weights_of

R26, R50 = {"blocks": [2, 2, 2, 2]}, {"blocks": [3, 4, 6, 3]}
PAPER: list[tuple[str, int, dict[str, Any], int]] = [
    # vit_jax/models_test.py, 1000 classes at 224 px; its R+Ti/16 covers 32 px with each token
    ("Ti", 16, {}, 5_717_416),
    ("S", 16, {}, 22_050_664),
    ("S", 32, {}, 22_878_952),
    ("B", 8, {}, 86_576_872),
    ("B", 16, {}, 86_567_656),
    ("B", 32, {}, 88_224_232),
    ("L", 16, {}, 304_326_632),
    ("L", 32, {}, 306_535_400),
    ("H", 14, {}, 632_045_800),
    ("S", 16, {"pool": "gap"}, 22_049_896),
    ("B", 16, {"pool": "gap"}, 86_566_120),
    ("B", 32, {"pool": "gap"}, 88_222_696),
    ("Ti", 32, {"stem": {"blocks": []}}, 6_337_704),
    ("S", 32, {"stem": R26}, 36_431_912),
    ("B", 32, {"stem": R26}, 101_383_976),
    ("B", 16, {"stem": {"blocks": [3, 4, 9]}}, 98_659_112),
    ("L", 32, {"stem": R50}, 328_994_856),
]


@pytest.mark.parametrize(("variant", "patch_px", "more", "count"), PAPER)
def test_parameter_counts_are_the_authors(
    variant: str, patch_px: int, more: dict[str, Any], count: int
) -> None:
    fields = {"variant": variant, "patch_px": patch_px, "image_px": 224, **more}
    spec = ModelSpec.parse(fields).to_vit(num_classes=1000)
    with torch.device("meta"):
        model = ViT(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert vit_parameters(spec) == count


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (
        build(tiny_spec(), seed=1),
        build(tiny_spec(), seed=1),
        build(tiny_spec(), seed=2),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.position, other.position)


def test_initial_weights_have_the_spread_of_the_authors_code() -> None:
    model = build(tiny_spec(width=240, mlp_dim=480, patch_px=8, image_px=(80, 80)), seed=0)
    assert model.position.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.patch.weight.std().item() == pytest.approx((1 / (3 * 8**2)) ** 0.5, rel=0.05)
    query = model.get_parameter("blocks.0.attention.query.weight")
    assert query.abs().max().item() == pytest.approx((6 / 480) ** 0.5, rel=0.01)
    assert not model.head.weight.any()
    assert not model.get_parameter("blocks.1" + KEY_BIAS).any()


def test_a_new_model_says_nothing_of_any_class() -> None:
    logits = build(tiny_spec(), seed=0)(torch.randn(3, 3, 8, 12))
    assert logits.shape == (3, 5)
    assert not logits.any()


def test_patches_times_the_kernel_are_a_convolution() -> None:
    pixels = torch.randn(2, 3, 8, 12)
    weight = torch.randn(24, 3 * 4 * 4)
    ours = patchify(pixels, 4) @ weight.T
    theirs = F.conv2d(pixels, weight.view(24, 3, 4, 4), stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_px 5 must divide both sides of 8 x 12"):
        patchify(torch.zeros(1, 3, 8, 12), 5)


def test_bytes_become_the_papers_range_channels_first() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    found = normalise(pixels, tiny_spec())
    assert found.shape == (1, 3, 1, 1)
    assert found.flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-6)


def test_each_colour_has_its_own_mean_and_spread() -> None:
    spec = tiny_spec(pixel_mean=(0.2, 0.4, 0.6), pixel_std=(0.1, 0.2, 0.4))
    pixels = torch.tensor([51, 102, 255], dtype=torch.uint8).expand(1, 2, 3, 3)
    found = normalise(pixels, spec)
    assert found.shape == (1, 3, 2, 3)
    assert found[0, :, 1, 2].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_features_are_taken_as_the_spec_says(pool: str) -> None:
    model = build(tiny_spec(pool=pool), seed=3)
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    features = model.forward_features(torch.randn(2, 3, 8, 12))
    assert seen[0].shape == (2, 6 + (pool == "cls"), 24)
    expected = seen[0][:, 0] if pool == "cls" else seen[0].mean(dim=1)
    assert torch.equal(features, expected)


@torch.no_grad()
@pytest.mark.parametrize("position", ["learned_1d", "relative"])
def test_attention_maps_are_what_the_blocks_use(position: str) -> None:
    model = build(tiny_spec(position=position, registers=2, qk_norm=True), seed=3).eval()
    pixels = torch.randn(2, 3, 8, 12)
    maps = weights_of(model, pixels)
    assert [tuple(it.shape) for it in maps] == [(2, 3, 9, 9)] * 2
    assert torch.allclose(maps[1].sum(dim=-1), torch.ones(2, 3, 9))
    first, attention = model.hidden_states(pixels)[0], model.blocks[1].attention
    tokens = model.blocks[1].norm1(first)
    value = attention.value(tokens).view(2, 9, 3, 8).transpose(1, 2)
    mixed = attention.out((maps[1] @ value).transpose(1, 2).reshape(2, 9, 24))
    assert torch.allclose(attention(tokens), mixed, atol=1e-6)


def test_initial_weights_of_other_parts_are_the_authors() -> None:
    spec = tiny_spec(
        stem=ResNetStemSpec(blocks=(1, 1)),
        patch_px=8,
        image_px=(16, 16),
        layer_scale=0.1,
        hidden_head=True,
        registers=4,
        qk_norm=True,
        pool="map",
    )
    weights = build(spec, seed=0).state_dict()
    assert not weights["stem.stages.1.0.norm3.weight"].any(), "a unit begins as its residual"
    assert weights["stem.stages.1.0.project_norm.weight"].eq(1).all()
    assert weights["blocks.0.attention.query_norm.weight"].eq(1).all()
    assert weights["blocks.1.scale2"].eq(0.1).all()
    assert weights["registers"].abs().max() < 1e-5
    spread = weights["stem.stages.1.0.conv2.weight"].std().item()
    assert spread == pytest.approx((1 / (9 * 128)) ** 0.5, rel=0.05)
    assert weights["hidden.weight"].std().item() == pytest.approx((1 / 24) ** 0.5, rel=0.1)
    assert weights["pooling.probe"].abs().max().item() == pytest.approx((6 / 25) ** 0.5, rel=0.2)


def test_the_attention_is_scaled_dot_product_over_heads() -> None:
    attention = build(tiny_spec(), seed=4).blocks[0].attention
    x = torch.randn(1, 5, 24)

    def heads(layer: torch.nn.Linear) -> torch.Tensor:
        return layer(x).view(1, 5, 3, 8).transpose(1, 2)

    scores = heads(attention.query) @ heads(attention.key).transpose(2, 3) / 8**0.5
    mixed = (scores.softmax(dim=-1) @ heads(attention.value)).transpose(1, 2).reshape(1, 5, 24)
    assert torch.allclose(attention(x), attention.out(mixed), atol=1e-6)
