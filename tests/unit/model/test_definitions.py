"""Every part of the model against a ViT written from the definitions in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cost import vit_flops, vit_parameters
from pipeline.model import build
from pipeline.model.vit import ViT
from schemas.model import ResNetStemSpec, ViTSpec
from tests.support.foreign import noise, randomise
from tests.support.models import tiny_spec
from tests.support.reference import ReferenceViT

TOLERANCE = 1e-5
PARTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pool": "gap"},
    "attention pooling": {"pool": "map"},
    "attention pooling over registers": {"pool": "map", "registers": 2},
    "no positions": {"position": "none"},
    "rows and columns": {"position": "learned_2d"},
    "rows and columns, mean": {"position": "learned_2d", "pool": "gap"},
    "sines": {"position": "sincos_2d"},
    "sines at every layer": {"position": "sincos_2d", "position_at": "shared"},
    "distances": {"position": "relative"},
    "distances beside registers": {"position": "relative", "registers": 2},
    "a table for each layer": {"position_at": "every_layer"},
    "two tables for each layer": {"position_at": "every_layer", "position": "learned_2d"},
    "one table at each layer": {"position_at": "shared", "registers": 1},
    "class token without position": {"class_position": False},
    "registers": {"registers": 3},
    "registers, mean": {"registers": 3, "pool": "gap"},
    "distillation": {"distillation_token": True, "registers": 1},
    "distillation, no class position": {"distillation_token": True, "class_position": False},
    "scaled branches": {"layer_scale": 0.1},
    "normed queries and keys": {"qk_norm": True},
    "axial": {"pool": "gap", "axial": True},
    "axial with distances": {"pool": "map", "axial": True, "position": "relative"},
    "norm of what is pooled": {"pool": "gap", "norm_at": "pooled"},
    "hidden layer": {"hidden_head": True},
    "another eps": {"layer_norm_eps": 1e-2},
}


def random_model(spec: ViTSpec) -> ViT:
    model = build(spec, seed=0)
    randomise(model, seed=7)
    return model.eval()


@torch.no_grad()
def furthest(model: ViT, reference: ViTSpec) -> float:
    """Largest difference from the logits that `reference` would give with the model's weights."""
    images = noise(model.spec.image_px, samples=2, seed=8)
    expected = ReferenceViT(reference, dict(model.named_parameters())).logits(images)
    return float(np.abs(model(images).numpy() - expected).max())


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_its_definition_says(part: str, gelu: str) -> None:
    spec = tiny_spec(gelu=gelu, **PARTS[part])
    assert furthest(random_model(spec), spec) <= TOLERANCE


@pytest.mark.parametrize(("ours", "other"), [("erf", "tanh"), ("tanh", "erf")])
def test_the_other_gelu_is_told_apart(ours: str, other: str) -> None:
    """At the paper's own depth and MLP: the two curves differ by 5e-4 at most."""
    spec = tiny_spec(depth=12, mlp_dim=96, gelu=ours)
    model = random_model(spec)
    assert furthest(model, spec) <= TOLERANCE
    assert furthest(model, spec.revise(gelu=other)) > 10 * TOLERANCE


@pytest.mark.parametrize("part", PARTS)
def test_the_cost_counts_every_parameter(part: str) -> None:
    spec = tiny_spec(**PARTS[part])
    model = build(spec, seed=0)
    assert sum(it.numel() for it in model.parameters()) == vit_parameters(spec)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


STEMS = {
    "root": {"stem": ResNetStemSpec(blocks=())},
    "stages": {"stem": ResNetStemSpec(blocks=(1, 2)), "patch_px": 8, "image_px": (16, 24)},
}


@pytest.mark.parametrize("part", [*PARTS, *STEMS])
def test_the_cost_counts_every_multiplication_of_matrices(part: str) -> None:
    spec = tiny_spec(**(PARTS | STEMS)[part])
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ViT(spec).to("meta")(torch.empty(1, 3, *spec.image_px))
    relative = spec.position == "relative"  # counted one distance for each pair, of about two
    assert counter.get_total_flops() == pytest.approx(vit_flops(spec), rel=0.1 if relative else 0)


@pytest.mark.parametrize("part", PARTS)
def test_recomputing_blocks_changes_no_gradient(part: str) -> None:
    spec = tiny_spec(**PARTS[part])
    images = noise(spec.image_px, samples=2, seed=8)
    gradients = []
    for recomputes in (False, True):
        model = random_model(spec).train()
        model.recomputes = recomputes
        model(images).square().sum().backward()
        gradients.append([it.grad for it in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_both_heads_are_apart_on_request_and_averaged_without() -> None:
    model = random_model(tiny_spec(distillation_token=True))
    images = noise(model.spec.image_px, samples=2, seed=8)
    tokens, pair = model.forward_tokens(images), model(images, both_heads=True)
    assert torch.equal(pair[:, 0], model.head(tokens[:, 0]))
    assert torch.equal(pair[:, 1], model.distillation_head(tokens[:, 1]))
    assert torch.equal(model(images), pair.mean(dim=1))
    assert torch.equal(model.forward_features(images), tokens[:, :2].mean(dim=1))
    with pytest.raises(ValueError, match="there is none"):
        random_model(tiny_spec())(images, both_heads=True)


@torch.no_grad()
def test_hidden_states_end_where_the_last_norm_begins() -> None:
    model = random_model(tiny_spec())
    images = noise(model.spec.image_px, samples=2, seed=8)
    states = model.hidden_states(images)
    assert len(states) == 2
    assert torch.equal(model.blocks[1](states[0]), states[1])
    assert torch.equal(model.norm(states[1]), model.forward_tokens(images))


@torch.no_grad()
def test_a_model_without_classes_gives_features() -> None:
    model = random_model(tiny_spec(num_classes=0))
    images = noise(model.spec.image_px, samples=2, seed=8)
    assert torch.equal(model(images), model.forward_features(images))
