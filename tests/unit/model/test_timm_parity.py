"""Numbers equal to timm's, with random weights copied over."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pipeline.model.interchange_names import read_weights
from pipeline.model.interchange_timm import rules
from pipeline.model.vit import KEY_BIAS, ViT
from schemas.model import ModelSpec, ResNetStemSpec, ViTSpec
from tests.support.foreign import noise, randomise, timm

TIMM_STEM = {"group_norm_eps": 1e-5, "weight_std": "timm", "weight_std_eps": 1e-8}


def stem(*blocks: int) -> ResNetStemSpec:
    return ResNetStemSpec(blocks=blocks, **TIMM_STEM)


def spec_of(variant: str, patch_px: int, image_px: int = 224, **more: Any) -> ViTSpec:
    model = ModelSpec(variant=variant, patch_px=patch_px, image_px=image_px, **more)
    return model.to_vit(num_classes=1000)


PAPER = {
    "vit_tiny_patch16_224": spec_of("Ti", 16),
    "vit_base_patch16_224": spec_of("B", 16),
    "vit_small_patch32_224": spec_of("S", 32),
    "vit_large_patch16_384": spec_of("L", 16, 384),
    "vit_small_r26_s32_224": spec_of("S", 32, stem=stem(2, 2, 2, 2)),
    "vit_base_r50_s16_224": spec_of("B", 16, stem=stem(3, 4, 9)),
    "vit_tiny_r_s16_p8_224": spec_of("Ti", 32, stem=stem()),
}
SLOW = {"vit_large_patch16_384"}


def pair(name: str, spec: ViTSpec, *, new: bool = False, **arguments: Any) -> tuple[nn.Module, ViT]:
    """timm's model and ours, with the same weights, in evaluation mode.

    The weights are random, or timm's initial ones but for the head, which would be zero.
    """
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = timm().create_model(name, num_classes=spec.num_classes, **arguments).eval()
        nn.init.normal_(theirs.head.weight, std=0.05)
    if not new:
        randomise(theirs, seed=5)
    with torch.device("meta"):
        ours = ViT(spec)
    ours.load_state_dict(from_timm(theirs.state_dict(), spec), assign=True)
    return theirs, ours.eval()


def from_timm(tensors: Mapping[str, Tensor], spec: ViTSpec) -> dict[str, Tensor]:
    """Under our names; strict."""
    return dict(read_weights(tensors, rules(spec), spec, layout="timm"))


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=pytest.mark.slow if it in SLOW else []) for it in PAPER]
)
@torch.no_grad()
def test_logits_are_timms(name: str) -> None:
    spec = PAPER[name]
    theirs, ours = pair(name, spec)
    images = noise(spec.image_px, samples=2, seed=6)
    expected, found = theirs(images), ours(images)
    assert expected.std() > 0.3, "logits of a realistic size"
    assert (found - expected).abs().max() <= (1e-4 if spec.stem else 2e-5)
    assert torch.equal(found.argmax(1), expected.argmax(1))


SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8}


def small_spec(**more: Any) -> ViTSpec:
    sizes = {"width": 48, "depth": 3, "num_heads": 4, "mlp_dim": 192, "patch_px": 8}
    return ViTSpec(**sizes, image_px=(32, 32), num_classes=10, **more)


VARIATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean of the patches": ({"pool": "gap"}, {"global_pool": "avg", "fc_norm": False}),
    "norm of the mean": ({"pool": "gap", "norm_at": "pooled"}, {"global_pool": "avg"}),
    "attention pooling": ({"pool": "map"}, {"global_pool": "map", "class_token": False}),
    "normed queries and keys": ({"qk_norm": True}, {"qk_norm": True}),
    "scaled branches": ({"layer_scale": 0.1}, {"init_values": 0.1}),
    "registers": (
        {"registers": 3, "class_position": False},
        {"reg_tokens": 3, "no_embed_class": True},
    ),
    "registers and mean": (
        {"registers": 3, "pool": "gap"},
        {"reg_tokens": 3, "class_token": False, "no_embed_class": True, "global_pool": "avg"}
        | {"fc_norm": False},
    ),
    "tanh GELU": ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
}


@pytest.mark.parametrize("variation", VARIATIONS)
@torch.no_grad()
def test_a_variation_is_wired_as_timms(variation: str) -> None:
    ours_has, theirs_has = VARIATIONS[variation]
    arguments = SMALL | theirs_has
    if ours_has.get("pool") == "gap":
        arguments["class_token"] = False
    theirs, ours = pair("vit_tiny_patch16_224", small_spec(**ours_has), **arguments)
    images = noise(ours.spec.image_px, samples=3, seed=6)
    assert (ours(images) - theirs(images)).abs().max() <= 2e-5


@pytest.mark.parametrize(("weights", "dtype"), [("new", torch.float32), ("big", torch.float64)])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch32_224", "vit_small_r26_s32_224"]
)
def test_gradients_are_timms(name: str, weights: str, dtype: torch.dtype) -> None:
    """With the big random weights fp32 itself is no better: timm's own are 1e-5 off float64's."""
    theirs, ours = pair(name, PAPER[name], new=weights == "new")
    images, labels = noise(ours.spec.image_px, samples=2, seed=6).to(dtype), torch.tensor([3, 141])
    for model in (theirs.to(dtype), ours.to(dtype)):
        F.cross_entropy(model(images), labels).backward()
    expected = from_timm({key: _gradient(it) for key, it in theirs.named_parameters()}, ours.spec)
    found = {key: _gradient(it) for key, it in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        difference = (gradient - expected[key]).abs().max()
        assert key.endswith(KEY_BIAS) or difference <= 1e-5 * expected[key].abs().max(), key


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
