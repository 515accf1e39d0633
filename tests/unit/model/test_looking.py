"""Attention, layers, positions and first kernels of libraries' models, by hooks on their parts."""

from typing import Any

import pytest
import torch

from pipeline.model import build
from pipeline.model.anatomy import first_kernels, pooled_layers, position_table
from pipeline.model.attention_maps import Attended, each_attention, rows_read
from schemas.backbones import HFModel, TimmModel
from schemas.errors import SpecError
from tests.support import foreign

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def model_of(kind: str, name: str, options: dict[str, Any]) -> Any:
    if kind == "timm":
        foreign.timm()
        fields = {"name": name, "image_px": [32, 64], "options": options}
        spec: Any = TimmModel.parse(fields).resolved(num_classes=3)
    else:
        pytest.importorskip("transformers", reason="extra `backbones`")
        fields = {"model_type": name, "image_px": [32, 64], "options": options}
        spec = HFModel.parse(fields).resolved(num_classes=3)
    return build(spec, seed=1).eval()


def hooks_of(model: Any) -> int:
    return sum(len(it._forward_hooks) + len(it._forward_pre_hooks) for it in model.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "options", "heads"),
    [
        ("timm", "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}, 2),
        ("hf", "vit", SMALL, 2),
        ("hf", "dinov3_vit", SMALL, 2),
    ],
)
def test_a_librarys_model_shows_its_attention_and_is_left_as_it_was(
    kind: str, name: str, options: dict[str, Any], heads: int
) -> None:
    model = model_of(kind, name, options)
    pixels = foreign.noise((32, 64), seed=2)
    before = model(pixels)
    seen: list[Attended] = []
    each_attention(model, pixels, seen.append)
    assert [it.layer for it in seen] == ["block 1", "block 2"]
    places = seen[0].places
    assert (places.leading, places.rows * places.columns) in ((1, 8), (1, 32))
    tokens = 1 + places.patches
    assert all(it.weights_SAMT.shape == (2, heads, tokens, tokens) for it in seen)
    assert torch.allclose(seen[1].weights_SAMT.sum(dim=-1), torch.ones(2, heads, tokens), atol=1e-5)
    assert rows_read(model, places) == slice(0, 1)
    assert torch.equal(model(pixels), before), "the fused kernel is back"
    layers, features = pooled_layers(model, pixels)
    assert torch.equal(features, model.forward_features(pixels))
    assert list(layers)[-1] in ("blocks.1", "layer 2")
    assert all(it.shape == (2, 24) for it in layers.values())
    hooks = hooks_of(model)  # transformers keeps some of its own from the first time on
    each_attention(model, pixels, seen.append)
    pooled_layers(model, pixels)
    assert hooks_of(model) == hooks


@torch.no_grad()
def test_timms_weights_are_ours_computed_by_hand() -> None:
    model = model_of("timm", "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2})
    pixels = foreign.noise((32, 64), seed=2)
    given: list[torch.Tensor] = []
    attention = model.body.blocks[0].attn
    handle = attention.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    seen: list[Attended] = []
    each_attention(model, pixels, seen.append)
    handle.remove()
    query, key, _ = attention.qkv(given[0]).reshape(2, 9, 3, 2, 12).permute(2, 0, 3, 1, 4)
    expected = (query @ key.transpose(2, 3) / 12**0.5).softmax(dim=-1)
    assert torch.allclose(seen[0].weights_SAMT, expected, atol=1e-6)


@torch.no_grad()
def test_layers_of_transformers_are_its_hidden_states() -> None:
    model = model_of("hf", "vit", SMALL)
    pixels = foreign.noise((32, 64), seed=2)
    states = model.body(pixel_values=pixels, output_hidden_states=True).hidden_states
    layers, _ = pooled_layers(model, pixels)
    for found, state in zip(layers.values(), states, strict=True):
        assert torch.allclose(found, state[:, 1:].mean(dim=1), atol=1e-6)
    table = position_table(model)
    assert torch.equal(table.table_ND, model.body.embeddings.position_embeddings[0, 1:])
    kernels = first_kernels(model)
    assert kernels.is_patch
    assert kernels.weights_DCHW.shape == (24, 3, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "options", "sentence"),
    [
        ("timm", "swin_tiny_patch4_window7_224", SWIN, "not over the whole image"),
        ("timm", "resnet10t", {}, "shows no weights of any attention"),
        ("hf", "swin", SWIN, "not over the whole image"),
        ("hf", "resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, "shows"),
    ],
)
def test_what_is_no_attention_over_the_image_is_refused(
    kind: str, name: str, options: dict[str, Any], sentence: str
) -> None:
    model = model_of(kind, name, options)
    pixels = foreign.noise((32, 64), seed=2)
    before = model(pixels)
    with pytest.raises(SpecError, match=sentence):
        each_attention(model, pixels, lambda _: None)
    with pytest.raises(SpecError, match="no table of learned positions"):
        position_table(model)
    assert torch.equal(model(pixels), before)
    layers, _ = pooled_layers(model, pixels)
    assert len(layers) >= 2
    assert all(len(it.shape) == 2 for it in layers.values())
