"""Which parameters decay, and what survives a load."""

import pytest
import torch
from torch import nn

from pipeline.model import build
from pipeline.model.backbone import Backbone
from pipeline.training.optimizer import (
    build_optimizer,
    decayed_names,
    parameter_groups,
    rewrite_groups,
    write_learning_rate,
)
from schemas.backbones import HFModel, ResNetSpec, TimmModel
from schemas.model import ResNetStemSpec
from schemas.optim import OptimSpec
from tests.support import foreign
from tests.support.training import OPTIM, TINY, model


def test_every_parameter_is_in_exactly_one_group() -> None:
    vit = model()
    groups = parameter_groups(vit, OPTIM)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in vit.parameters())


EVERYTHING = TINY.revise(
    stem=ResNetStemSpec(blocks=(1,)),
    position="learned_2d",
    registers=2,
    distillation_token=True,
    layer_scale=0.1,
    qk_norm=True,
)


def test_norms_tokens_positions_and_factors_never_decay() -> None:
    names = decayed_names(model(EVERYTHING))
    parts = {".".join(name.split(".")[-2:-1]) for name in names}
    attention = {"query", "key", "value", "out"}
    heads = {"head", "distillation_head"}
    stem = {"root", "conv1", "conv2", "conv3", "project"}
    assert parts == {"patch", "dense1", "dense2"} | attention | heads | stem


def test_of_a_resnet_convolutions_and_head_decay() -> None:
    resnet = build(ResNetSpec(blocks=(1, 1), width=32, image_px=(8, 8), num_classes=3), seed=1)
    shapes = {name: it.ndim for name, it in resnet.named_parameters()}
    assert decayed_names(resnet) == {name for name, ndim in shapes.items() if ndim > 1}
    assert {name for name, ndim in shapes.items() if ndim == 2} == {"head.weight"}


class Scale(nn.Module):
    """A factor for each channel, stretched over a grid as in ConvNeXt V2 of `transformers`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1, 6))


def test_strangers_are_told_by_their_modules_and_not_by_our_names() -> None:
    parts = {"table": nn.Embedding(3, 6), "ln": nn.LayerNorm((2, 6)), "scale": Scale()}
    model = nn.ModuleDict(parts | {"fc": nn.Linear(6, 1), "conv": nn.Conv2d(3, 6, 1)})
    assert decayed_names(model) == {"fc.weight", "conv.weight"}
    shared = nn.Module()
    shared.register_parameter("weight", nn.Parameter(torch.ones(2, 2)))
    assert decayed_names(shared) == {"weight"}


def test_only_dense_kernels_decay() -> None:
    vit = model()
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    decayed, plain = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(vit, OPTIM)
    )
    assert {"patch.weight", "head.weight", "blocks.0.attention.key.weight"} <= decayed
    assert {"class_token", "position", "norm.weight", "blocks.1.norm2.weight"} <= plain
    assert all(name in plain for name in names.values() if name.endswith("bias"))
    assert all(dict(vit.named_parameters())[name].ndim == 2 for name in decayed)


def shares(backbone: Backbone) -> dict[str, float]:
    """Share of the rate that each parameter has."""
    optim = OPTIM.revise(layer_decay=0.5)
    optimizer = build_optimizer(backbone, optim)
    write_learning_rate(optimizer, 8.0)
    found = {
        id(parameter): group["lr"] / 8.0
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    groups = [len(group["params"]) for group in optimizer.param_groups]
    assert sum(groups) == len(found) == len(list(backbone.parameters())), "in one group each"
    return {name: found[id(parameter)] for name, parameter in backbone.named_parameters()}


def test_each_layer_has_its_share_of_the_rate_of_the_one_above() -> None:
    found = shares(model(EVERYTHING))
    top = {"norm", "head", "distillation_head"}
    for name, share in found.items():
        part, _, rest = name.partition(".")
        above = 2 - int(rest.partition(".")[0]) if part == "blocks" else 0 if part in top else 3
        assert share == 0.5**above, name
    assert {found["class_token"], found["patch.weight"], found["stem.root.weight"]} == {0.125}


def test_units_are_the_layers_of_a_resnet() -> None:
    found = shares(
        build(ResNetSpec(blocks=(1, 2), width=32, image_px=(8, 8), num_classes=3), seed=1)
    )
    units = ["root", "stages.0.0", "stages.1.0", "stages.1.1", "head"]
    assert [
        found[f"{unit}.weight" if unit in ("root", "head") else f"{unit}.conv1.weight"]
        for unit in units
    ] == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert found["norm.weight"] == 1.0


def test_layers_of_timm_are_those_that_timm_knows() -> None:
    foreign.timm()
    fields = {"name": "vit_tiny_patch16_224", "image_px": 32, "options": {"depth": 3}}
    found = shares(build(TimmModel.parse(fields).resolved(num_classes=2), seed=1))
    assert found["body.cls_token"] == found["body.patch_embed.proj.weight"] == 0.5**4
    assert [found[f"body.blocks.{i}.norm1.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert (found["body.norm.weight"], found["head.weight"]) == (0.5, 1.0)
    convolutions = {"name": "resnet10t", "image_px": 64}
    found = shares(build(TimmModel.parse(convolutions).resolved(num_classes=2), seed=1))
    assert found["body.conv1.0.weight"] == min(found.values()) < found["body.layer4.0.conv1.weight"]


def test_layers_of_transformers_are_told_by_the_names_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign.transformers(monkeypatch)
    options = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
    fields = {"model_type": "dinov2", "image_px": 8, "options": options}
    found = shares(build(HFModel.parse(fields).resolved(num_classes=2), seed=1))
    assert found["body.embeddings.cls_token"] == 0.125
    assert found["body.encoder.layer.0.norm1.weight"] == 0.25
    assert found["body.encoder.layer.1.norm1.weight"] == 0.5
    assert found["body.layernorm.weight"] == found["head.weight"] == 1.0


def test_without_layer_decay_all_learn_alike() -> None:
    optimizer = build_optimizer(model(), OPTIM)
    write_learning_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_hyper_parameters_come_from_the_spec_again(algorithm: str) -> None:
    fields = {"algorithm": algorithm, "beta1": 0.8, "layer_decay": 0.5}
    spec = OptimSpec.parse({**OPTIM.dump(), **fields})
    optimizer = build_optimizer(model(), spec)
    write_learning_rate(optimizer, spec.peak_lr)
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(weight_decay=9.0, betas=(0.0, 0.0), momentum=0.0, eps=1.0, rate_ratio=3.0)
    rewrite_groups(optimizer, spec)
    write_learning_rate(optimizer, spec.peak_lr)
    for old, new in zip(before, optimizer.param_groups, strict=True):
        assert all(new[name] == value for name, value in old.items() if name != "params")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0] * 4


def test_the_optimizers_are_torchs_own() -> None:
    assert type(build_optimizer(model(), OPTIM)) is torch.optim.AdamW
    sgd = build_optimizer(model(), OPTIM.revise(algorithm="sgd"))
    assert type(sgd) is torch.optim.SGD


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_an_update_does_not_depend_on_how_numbers_are_cut(algorithm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weights, gradients = torch.randn(2, 100_003, generator=generator)

    def updated(cuts: tuple[int, ...]) -> torch.Tensor:
        bare = nn.Module()
        ends = zip((0, *cuts), (*cuts, len(weights)), strict=True)
        for index, (start, stop) in enumerate(ends):
            bare.register_parameter(f"p{index}", nn.Parameter(weights[start:stop].clone()))
        optimizer = build_optimizer(bare, OPTIM.revise(algorithm=algorithm))
        for step in range(1, 4):
            start = 0
            for parameter in bare.parameters():
                stop = start + parameter.numel()
                parameter.grad = gradients[start:stop] / step
                start = stop
            optimizer.step()
        return torch.cat([parameter.detach() for parameter in bare.parameters()])

    whole = updated(())
    assert not torch.equal(whole, weights)
    for cuts in ((50_002,), (1, 4, 11, 40_000), (33_335, 66_670)):
        assert torch.equal(updated(cuts), whole)
