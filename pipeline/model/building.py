"""A model of any type from its spec: with initial weights, or to be filled with given ones."""

from typing import overload

import torch
from torch import Tensor

from pipeline.model.backbone import Backbone, buffers
from pipeline.model.resnet import ResNet, build_resnet
from pipeline.model.vit import Encoder, ViT
from pipeline.model.vit import build as build_vit
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.model import ViTSpec


@overload
def build(spec: ViTSpec, *, seed: int) -> ViT: ...
@overload
def build(spec: BackboneSpec, *, seed: int) -> Backbone: ...
def build(spec: BackboneSpec, *, seed: int) -> Backbone:
    """A model on the CPU with initial weights fixed by (spec, seed), its head zero.

    The global generator is left as it was. The model starts in training mode.

    Raises:
        SpecError: If a library has no such model, or is not installed.
    """
    if isinstance(spec, ViTSpec):
        return build_vit(spec, seed=seed)
    if isinstance(spec, ResNetSpec):
        return build_resnet(spec, seed=seed)
    from pipeline.model.backbones import build_foreign

    return build_foreign(spec, seed=seed)


def compile_blocks(model: Backbone | Encoder) -> None:
    """Have torch compile the blocks of a ViT, or another model whole; all names stay as they are.

    One graph is made for each shape of input: a general one would be slower.
    """
    for part in model.blocks if isinstance(model, Encoder) else [model]:
        part.compile(dynamic=False)


def unfilled(spec: BackboneSpec) -> Backbone:
    """A model whose weights are to be replaced by `load_state_dict(..., assign=True)`.

    One of ours takes no memory. A library's is made with weights: what it keeps beside those of its
    state has to be computed.
    """
    if isinstance(spec, ViTSpec | ResNetSpec):
        with torch.device("meta"):
            return ViT(spec) if isinstance(spec, ViTSpec) else ResNet(spec)
    return build(spec, seed=0)


def state_of(model: Backbone) -> dict[str, Tensor]:
    """Parameters and buffers by name: all that the spec does not say."""
    return {**dict(model.named_parameters()), **buffers(model)}
