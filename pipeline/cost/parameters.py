"""Learned numbers of a model, and those that an objective adds; exact."""

from pipeline.cost.convolutions import convolutions
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.model import ResNetStemSpec, ViTSpec
from schemas.objectives import COLOUR_LEVELS, AnyObjective, MaeSpec, MaskedPatchSpec


def model_parameters(spec: BackboneSpec) -> int | None:
    """Learned numbers, head included; None for a model that only its library can count."""
    if isinstance(spec, ViTSpec):
        return vit_parameters(spec)
    return resnet_parameters(spec) if isinstance(spec, ResNetSpec) else None


def trained_parameters(spec: ViTSpec | ResNetSpec, objective: AnyObjective) -> int:
    """Learned numbers of all that is trained."""
    if isinstance(spec, ResNetSpec):
        return resnet_parameters(spec)
    return vit_parameters(spec) + objective_parameters(objective, spec)


def vit_parameters(spec: ViTSpec) -> int:
    """Learned numbers of a ViT, head included.

    With width D, depth L, MLP width M, V numbers in a patch, N patches, S leading tokens with a
    position, K classes, and E = D / heads:

    - stem, patches V D + D, one D for each leading token, positions `position_numbers`
    - each of L blocks (two in an axial one): two norms 4 D, attention 4 D^2 + 4 D, MLP
      2 D M + M + D; with `layer_scale` 2 D, with `qk_norm` 4 E
    - last norm 2 D; pool `map` D and a block without its first norm; a hidden layer D^2 + D;
      each head D K + K
    """
    width, hidden = spec.width, spec.mlp_dim
    embedding = spec.patch_values * width + width + spec.leading * width
    attention, mlp = 4 * width**2 + 4 * width, 2 * width * hidden + hidden + width
    block = 4 * width + attention + mlp
    block += 2 * width if spec.layer_scale else 0
    block += 4 * (width // spec.num_heads) if spec.qk_norm else 0
    pooling = width + attention + 2 * width + mlp if spec.pool == "map" else 0
    hidden_layer = width**2 + width if spec.hidden_head else 0
    heads = (1 + spec.distillation_token) * (width + 1) * spec.num_classes
    blocks = spec.depth * (2 if spec.axial else 1) * block
    own = embedding + position_numbers(spec) + blocks + 2 * width + pooling + hidden_layer + heads
    return own + (stem_parameters(spec.stem) if spec.stem else 0)


def objective_parameters(objective: AnyObjective, model: ViTSpec) -> int:
    """Learned numbers that an objective adds while it trains, in the letters of `vit_parameters`.

    - `masked_patch`: a token D, and a dense layer for C colours, D C + C
    - `mae`, with a decoder of width W: D W + W, a token W, its blocks, 2 W, and W V + V
    """
    if isinstance(objective, MaskedPatchSpec):
        return model.width + (model.width + 1) * COLOUR_LEVELS**3
    if not isinstance(objective, MaeSpec):
        return 0
    decoder = objective.decoder(model)
    width, values = decoder.width, decoder.patch_values
    # As a ViT it would have patches, V W + W, and leading tokens, instead of what is around here.
    blocks = vit_parameters(decoder) - (values + 1 + decoder.leading) * width
    return blocks + (model.width + 1) * width + width + (width + 1) * values


def resnet_parameters(spec: ResNetSpec) -> int:
    """Learned numbers of a ResNet, head included.

    Kernels as in a stem. A unit's norms are before its convolutions, so two numbers for each
    channel that goes in and for twice the width; one norm is after the last stage.
    """
    kernels = sum(each.kernel for each in convolutions(spec, spec.image_px))
    source, norms = spec.width, 2 * spec.features
    for stage, units in enumerate(spec.blocks):
        width = spec.width * 2**stage
        norms += 2 * (source + 2 * width) + (units - 1) * 2 * (4 * width + 2 * width)
        source = 4 * width
    return kernels + norms + (spec.features + 1) * spec.num_classes


def position_numbers(spec: ViTSpec) -> int:
    """Tables of (S + N) D, or S D + (rows + columns) D / 2; (2 N - 1) D of distances a block."""
    if spec.position == "learned_1d":
        return spec.tables * (spec.slots + spec.patches) * spec.width
    if spec.position == "learned_2d":
        return spec.tables * (spec.slots * spec.width + sum(spec.grid) * (spec.width // 2))
    if spec.position == "relative":
        lines = spec.grid if spec.axial else (spec.patches,)
        return spec.depth * sum(2 * line - 1 for line in lines) * spec.width
    return 0


def stem_parameters(stem: ResNetStemSpec) -> int:
    """Kernels, and two numbers for each channel of the norm after each."""
    layers = convolutions(stem, (stem.stride, stem.stride))
    return sum(each.kernel + 2 * each.out for each in layers)
