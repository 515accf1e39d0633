"""What frozen parts and narrow matrices leave to learn, against the models themselves."""

from typing import Any

import pytest

from pipeline.cost import (
    activation_bytes,
    learning,
    state_bytes,
    training_flops,
    training_memory,
    vit_parameters,
)
from pipeline.cost.learning import layer_of, resnet_parts, vit_parts
from pipeline.cost.parameters import resnet_parameters
from pipeline.model import build
from pipeline.model.adapters import add_lora
from pipeline.model.backbone import Backbone
from pipeline.model.freezing import freeze
from schemas.backbones import ResNetSpec
from schemas.model import ResNetStemSpec, ViTSpec
from schemas.training import FinetuneSpec
from schemas.tuning import FreezeSpec
from tests.support.costs import SUPERVISED, Case, count
from tests.support.training import RESNET, TINY

EVERYTHING = TINY.revise(
    stem=ResNetStemSpec(blocks=(1,)),
    position="learned_2d",
    registers=2,
    distillation_token=True,
    layer_scale=0.1,
    qk_norm=True,
)
SHAPES = (
    TINY,
    EVERYTHING,
    TINY.revise(pool="map", position="relative"),
    TINY.revise(pool="gap", axial=True, position="relative", image_px=(8, 12)),
    TINY.revise(position_at="every_layer", stem=ResNetStemSpec(blocks=(1,)), image_px=(64, 64)),
    RESNET,
)


def spec_of(**changes: Any) -> FinetuneSpec:
    fields = {"data": "a", "init": "b", "optim": {"peak_lr": 1e-3}, "duration": {"steps": 3}}
    return FinetuneSpec.parse({**fields, "batch": {"global_samples": 4}, **changes})


def narrowed(model: ViTSpec | ResNetSpec, spec: FinetuneSpec) -> Backbone:
    made = build(model, seed=1)
    if spec.freeze is not None:
        freeze(made, spec.freeze)
    if spec.lora is not None:
        add_lora(made, spec.lora, seed=2)
    return made


@pytest.mark.parametrize("model", SHAPES)
def test_parts_have_the_numbers_and_the_layers_of_the_model(model: ViTSpec | ResNetSpec) -> None:
    parts = vit_parts(model) if isinstance(model, ViTSpec) else resnet_parts(model)
    made = build(model, seed=1)
    layers, counted = made.layers(), dict.fromkeys(parts, 0)
    for name, parameter in made.named_parameters():
        inside = [it for it in parts if name == it or name.startswith((f"{it}.", f"{it}_"))]
        (part,) = inside[-1:]
        counted[part] += parameter.numel()
        assert layer_of(part, model) == layers[name], name
    assert counted == parts
    whole = vit_parameters(model) if isinstance(model, ViTSpec) else resnet_parameters(model)
    assert sum(parts.values()) == whole


FROZEN: tuple[dict[str, Any], ...] = (
    {"freeze": {"up_to_layer": 0}},
    {"freeze": {"up_to_layer": 1}},
    {"freeze": {"all_but": "head"}},
    {"freeze": {"all_but": ["head", "norm"]}},
)
LORA = {"lora": {"rank": 3, "targets": ["query", "dense2"]}}


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *((model, changes) for model in SHAPES for changes in FROZEN),
        *((model, LORA) for model in SHAPES if model is not RESNET),
    ],
)
def test_what_learns_is_counted_exactly(
    model: ViTSpec | ResNetSpec, changes: dict[str, Any]
) -> None:
    spec = spec_of(**changes)
    made, found = narrowed(model, spec), learning(model, spec)
    sizes = [(it.requires_grad, it.numel()) for it in made.parameters()]
    assert found.learned == sum(size for learns, size in sizes if learns)
    assert found.frozen == sum(size for learns, size in sizes if not learns)
    layers = made.layers()
    first = min(layers[name] for name, it in made.named_parameters() if it.requires_grad)
    assert found.first_layer == first


def test_without_a_word_all_learns() -> None:
    assert learning(TINY, spec_of()) == (vit_parameters(TINY), 0, 0)


def test_only_weights_are_held_of_what_is_frozen() -> None:
    optim = spec_of().optim.revise(ema_decay=0.9)
    found = state_bytes(100, optim, zero_stage=0, world=1, frozen=1000)
    assert found.held == 1100 * 4 + 100 * (4 + 8 + 4)
    spread = state_bytes(100, optim, zero_stage=3, world=4, frozen=1000)
    assert spread.weights == 1100
    assert spread.held - spread.buckets == 1100 + 100 * (1 + 1 + 2 + 1)


DEEP = TINY.revise(depth=4, image_px=(32, 32), patch_px=4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_nothing_below_the_first_layer_that_learns_costs_a_backward_pass(
    layer: int, bf16: bool
) -> None:
    case = Case("frozen", DEEP, bf16=bf16, freeze=FreezeSpec(up_to_layer=layer))
    counted = count(case)
    first = learning(DEEP, spec_of(freeze={"up_to_layer": layer})).first_layer
    kept = activation_bytes(DEEP, SUPERVISED, samples=case.samples, bf16=bf16, first_layer=first)
    assert counted.saved_bytes <= kept <= 1.1 * counted.saved_bytes
    flops = case.samples * training_flops(DEEP, SUPERVISED, first_layer=first)
    assert flops == pytest.approx(counted.flops, rel=0.05)


def test_memory_falls_with_what_is_frozen() -> None:
    def peak(**changes: Any) -> float:
        spec = spec_of(**changes)
        return training_memory(DEEP, spec, zero_stage=0, world=1, micro_batch=2).peak

    whole = peak()
    assert peak(lora={"rank": 2}) < whole
    assert peak(freeze={"all_but": "head"}) < peak(freeze={"up_to_layer": 2}) < whole
