"""Which parameters decay, and what survives a load."""

import pytest
import torch
from torch import nn

from pipeline.model import build
from pipeline.training.optimizer import (
    build_optimizer,
    decayed_names,
    parameter_groups,
    rewrite_groups,
    write_learning_rate,
)
from schemas.backbones import ResNetSpec
from schemas.model import ResNetStemSpec
from schemas.training import OptimSpec
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


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_hyper_parameters_come_from_the_spec_again(algorithm: str) -> None:
    spec = OptimSpec.parse({**OPTIM.dump(), "algorithm": algorithm, "beta1": 0.8})
    optimizer = build_optimizer(model(), spec)
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(weight_decay=9.0, betas=(0.0, 0.0), momentum=0.0, eps=1.0)
    rewrite_groups(optimizer, spec)
    write_learning_rate(optimizer, spec.peak_lr)
    for old, new in zip(before, optimizer.param_groups, strict=True):
        assert all(new[name] == value for name, value in old.items() if name != "params")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_the_optimizers_are_torchs_own() -> None:
    assert type(build_optimizer(model(), OPTIM)) is torch.optim.AdamW
    sgd = build_optimizer(model(), OPTIM.revise(algorithm="sgd"))
    assert type(sgd) is torch.optim.SGD
