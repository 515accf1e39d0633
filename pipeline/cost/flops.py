"""FLOPs of one image: forward, and in training; two for each multiply-add.

Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them.
Norms, softmax, GELU and biases are left out: below 2 % at the sizes of the paper.
"""

from typing import NamedTuple

from pipeline.cost.convolutions import Unit, convolutions, root, units
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.model import ViTSpec
from schemas.objectives import COLOUR_LEVELS, AnyObjective, MaeSpec, MaskedPatchSpec


class Work(NamedTuple):
    """FLOPs of one image forward, by what the backward pass makes of them."""

    first: int = 0
    """Of the layer that sees pixels, which have no gradient: backward costs as much as forward."""
    dense: int = 0
    """Of all others: gradients of both factors cost twice the forward."""
    fused: int = 0
    """Of attention in one kernel: two products forward; five backward, where the scores are
    computed anew."""
    again: int = 0
    """Run a second time in the backward pass if blocks are recomputed; part of the above."""

    @property
    def forward(self) -> int:
        """Of one forward pass."""
        return self.first + self.dense + self.fused

    def training(self, *, recompute: bool) -> int:
        """Of one forward and backward pass."""
        plain = 2 * self.first + 3 * self.dense + 7 * self.fused // 2
        return plain + (self.again if recompute else 0)


def model_flops(spec: BackboneSpec) -> int | None:
    """FLOPs of one image forward; None for a model that only its library can count."""
    if isinstance(spec, ViTSpec):
        return vit_flops(spec)
    return resnet_flops(spec) if isinstance(spec, ResNetSpec) else None


def vit_flops(spec: ViTSpec) -> int:
    """FLOPs of one image forward, no patch dropped; see `vit_work`."""
    return vit_work(spec).forward


def objective_flops(objective: AnyObjective, model: ViTSpec) -> int:
    """FLOPs of one image forward, with what the objective adds and leaves out; see `vit_work`."""
    return _objective_work(objective, model, seen=None).forward


def resnet_flops(spec: ResNetSpec) -> int:
    """FLOPs of one image forward: convolutions and the head."""
    return resnet_work(spec).forward


def training_flops(
    spec: ViTSpec | ResNetSpec,
    objective: AnyObjective,
    *,
    recompute: bool = False,
    first_layer: int = 0,
) -> int:
    """FLOPs of one image forward and backward, those of patches that are dropped left out.

    About three times the forward pass; with `recompute` about four times. A teacher comes on top.
    There is no backward pass below `first_layer`, the lowest of a ViT in which something learns;
    what is frozen above it counts as if it learned, on the high side, and so does all of a ResNet.
    """
    if isinstance(spec, ResNetSpec):
        return resnet_work(spec).training(recompute=recompute)
    seen = spec.kept_patches if spec.patch_dropout else None
    work = _objective_work(objective, spec, seen=seen)
    if not first_layer:
        return work.training(recompute=recompute)
    frozen = min(first_layer - 1, spec.depth)
    length = tokens(spec) if seen is None else spec.leading + seen
    each = _blocks(spec.revise(depth=1), length)
    dense = work.dense - frozen * each.dense - _embedding(spec)[1]
    learns = Work(0, dense, work.fused - frozen * each.fused, work.again - frozen * each.again)
    return work.forward - learns.forward + learns.training(recompute=recompute)


def vit_work(spec: ViTSpec, *, seen: int | None = None) -> Work:
    """One image through a ViT; in the letters of `parameters.vit_parameters`.

    2 (stem + V D N  +  L (4 D^2 T + 2 D M T + 2 T^2 D)  +  D K) for T tokens, none dropped, or
    those of `seen` patches.
    The term in T^2 is attention: along rows and columns alone in an axial block, whose other terms
    are doubled. Relative positions add N (2 N' - 1) D to a block, N' patches being in a sequence;
    pool `map` adds 2 D (D (T + 1) + T + M).
    """
    width = spec.width
    first, stem = _embedding(spec)
    blocks = _blocks(spec, tokens(spec) if seen is None else spec.leading + seen)
    pooling = _pooling(spec, tokens(spec) if seen is None else spec.leading + seen)
    heads = (1 + spec.distillation_token) * width * spec.num_classes
    heads += width**2 if spec.hidden_head else 0
    return Work(
        first=first,
        dense=stem + blocks.dense + pooling.dense + 2 * heads,
        fused=blocks.fused + pooling.fused,
        again=blocks.again,
    )


def _embedding(spec: ViTSpec) -> tuple[int, int]:
    """Of the layer that sees pixels, and of the rest that makes patches' vectors."""
    patches = 2 * spec.patches * spec.patch_values * spec.width
    if spec.stem is None:
        return patches, 0
    first = root(spec.stem, spec.image_px).flops
    layers = convolutions(spec.stem, spec.image_px)
    return first, sum(each.flops for each in layers) - first + patches


def _blocks(spec: ViTSpec, length: int) -> Work:
    """All blocks over `length` tokens. With relative positions attention is not fused."""
    width, doubled = spec.width, 2 if spec.axial else 1
    linear = 2 * length * (4 * width**2 + 2 * width * spec.mlp_dim) * doubled
    others = sum(spec.grid) if spec.axial else length
    attention = 4 * length * others * width
    relative = spec.position == "relative"
    if relative:
        lines = spec.grid if spec.axial else (spec.patches,)
        attention += 2 * spec.patches * sum(2 * line - 1 for line in lines) * width
    # Recomputing stops at the last tensor that is needed: the MLP's second product makes none.
    needs_all = spec.layer_scale or spec.dropout or spec.drop_path
    again = linear + attention - (0 if needs_all else 2 * length * width * spec.mlp_dim)
    return Work(
        dense=spec.depth * (linear + (attention if relative else 0)),
        fused=0 if relative else spec.depth * attention,
        again=spec.depth * again,
    )


def _pooling(spec: ViTSpec, length: int) -> Work:
    """Attention pooling: keys and values of all tokens, all else of one."""
    if spec.pool != "map":
        return Work()
    width = spec.width
    dense = 2 * width * (width * (2 * length + 2) + 2 * spec.mlp_dim)
    return Work(dense=dense, fused=2 * 2 * length * width)


def _objective_work(objective: AnyObjective, model: ViTSpec, *, seen: int | None) -> Work:
    if isinstance(objective, MaskedPatchSpec):
        work = vit_work(model, seen=seen)
        colours = 2 * model.patches * model.width * COLOUR_LEVELS**3
        return work._replace(dense=work.dense + colours)
    if not isinstance(objective, MaeSpec):
        return vit_work(model, seen=seen)
    decoder, seen = objective.decoder(model), objective.kept(model.patches)
    encoder, blocks = vit_work(model, seen=seen), _blocks(decoder, tokens(decoder))
    between = 2 * (model.leading + seen) * model.width * decoder.width
    pixels = 2 * decoder.patches * decoder.patch_values * decoder.width
    return Work(
        first=encoder.first,
        dense=encoder.dense + between + blocks.dense + pixels,
        fused=encoder.fused + blocks.fused,
        again=encoder.again,  # the decoder's blocks are never recomputed
    )


def resnet_work(spec: ResNetSpec) -> Work:
    """One image through a ResNet."""
    first, inside = root(spec, spec.image_px).flops, units(spec, spec.image_px)
    layers = sum(each.flops for unit in inside for each in unit.layers)
    return Work(
        first=first,
        dense=layers + 2 * spec.features * spec.num_classes,
        again=sum(_again(unit) for unit in inside),
    )


def _again(unit: Unit) -> int:
    """What of a unit is recomputed: its last convolution makes nothing that is needed."""
    return sum(each.flops for each in unit.layers) - unit.last.flops


def tokens(spec: ViTSpec) -> int:
    """Length of the sequence: patches, and what comes before them."""
    return spec.leading + spec.patches
