"""Bytes that autograd keeps from forward to backward for one micro-batch, eager torch.

What saved-tensor hooks would count: each storage once, parameters not. Stated for the CPU's
kernels; on a GPU dropout keeps a byte for each number instead of four, and LayerNorm under autocast
a copy in fp32 where tokens are bf16. Compiled blocks keep other things.
"""

from typing import NamedTuple

from pipeline.cost.convolutions import (
    POOL_SIDE,
    ROOT_SIDE,
    Convolution,
    Unit,
    bordered,
    cells,
    convolutions,
    root,
    shrunk,
    units,
)
from pipeline.cost.flops import tokens
from schemas.backbones import ResNetSpec
from schemas.model import CHANNELS, GROUPS, ResNetStemSpec, ViTSpec
from schemas.objectives import COLOUR_LEVELS, AnyObjective, MaeSpec, MaskedPatchSpec

_WIDE = 4
"""Bytes of an fp32 number."""
_INDEX = 8
"""Bytes of an index."""


class Kept(NamedTuple):
    """Bytes that are kept."""

    each: int = 0
    """For each sample of the micro-batch."""
    once: int = 0
    """Whatever the micro-batch: kernels that are standardised, and copies of weights in bf16."""

    def plus(self, *others: "Kept") -> "Kept":
        """All together."""
        parts = (self, *others)
        return Kept(sum(part.each for part in parts), sum(part.once for part in parts))

    def bytes(self, samples: int) -> int:
        """Of a whole micro-batch."""
        return samples * self.each + self.once

    def times(self, count: int) -> "Kept":
        """As often as said."""
        return Kept(self.each * count, self.once * count)


def activation_bytes(
    spec: ViTSpec | ResNetSpec,
    objective: AnyObjective,
    *,
    samples: int,
    bf16: bool,
    recompute: bool = False,
    first_layer: int = 0,
) -> int:
    """Bytes kept for one micro-batch of `samples`, at their peak.

    With `recompute`: what goes into each block, and the insides of one. Nothing is kept below
    `first_layer`, the lowest of a ViT in which something learns; what is frozen above it counts as
    if it learned, on the high side, and so does all of a ResNet.
    """
    if isinstance(spec, ResNetSpec):
        kept = _resnet(spec, bf16=bf16)
        if recompute:
            inside = [unit.bytes(samples) for unit in _units(spec, bf16=bf16)]
            return kept.bytes(samples) - sum(inside) + max(inside)
    else:
        kept = _vit(spec, objective, bf16=bf16, recompute=recompute, first_layer=first_layer)
    return kept.bytes(samples)


def _vit(
    spec: ViTSpec, objective: AnyObjective, *, bf16: bool, recompute: bool, first_layer: int
) -> Kept:
    if isinstance(objective, MaeSpec):
        return _mae(objective, spec, bf16=bf16, recompute=recompute)
    patches = spec.kept_patches
    if first_layer:
        return _top(spec, first_layer, bf16=bf16, recompute=recompute)
    encoder = _encoder(spec, patches, bf16=bf16, recompute=recompute)
    if isinstance(objective, MaskedPatchSpec):
        return encoder.plus(_colours(spec, bf16=bf16))
    return encoder.plus(_head(spec, spec.leading + patches, bf16=bf16))


def _top(spec: ViTSpec, first_layer: int, *, bf16: bool, recompute: bool) -> Kept:
    """The blocks from `first_layer` on, what goes into the last norm, and the head."""
    length = spec.leading + spec.kept_patches
    blocks = max(0, spec.depth + 1 - first_layer)
    learning = _blocks(spec.revise(depth=max(1, blocks)), length, bf16=bf16, recompute=recompute)
    last = Kept(length * (spec.width * _stream(spec, bf16=bf16) + 2 * _WIDE))
    return last.plus(learning.times(min(1, blocks)), _head(spec, length, bf16=bf16))


def _narrow(*, bf16: bool) -> int:
    """Bytes of a number that matrix products read and write."""
    return 2 if bf16 else _WIDE


def _stream(spec: ViTSpec, *, bf16: bool) -> int:
    """Bytes of a number in the tokens between blocks: fp32 as soon as an fp32 table is added."""
    adds = spec.position not in ("none", "relative") or spec.layer_scale
    return _WIDE if adds else _narrow(bf16=bf16)


def _encoder(spec: ViTSpec, patches: int, *, bf16: bool, recompute: bool) -> Kept:
    """Stem, patches, the blocks over `patches` that stay, and what goes into the last norm.

    In numbers: V for each patch of all; where some are left out, D for each token of all and an
    index for each that stays; with dropout, its draws D; and the blocks.
    """
    narrow, stream = _narrow(bf16=bf16), _stream(spec, bf16=bf16)
    length = spec.leading + patches
    own = spec.patches * spec.patch_values * narrow
    if patches < spec.patches:
        own += length * _INDEX + tokens(spec) * spec.width * narrow
    own += length * spec.width * stream if spec.dropout else 0
    last = 0
    if spec.norm_at == "tokens" or spec.pool == "cls":
        # A slice of the class token keeps all tokens that it is cut from.
        last = length * (spec.width * stream + 2 * _WIDE)
    blocks = _blocks(spec, length, bf16=bf16, recompute=recompute)
    before = _stem(spec, bf16=bf16) if spec.stem else Kept()
    return before.plus(blocks, Kept(own + last))


def _blocks(spec: ViTSpec, length: int, *, bf16: bool, recompute: bool) -> Kept:
    """All blocks over `length` tokens."""
    enters = Kept(length * spec.width * _stream(spec, bf16=bf16))
    inside = _insides(spec, length, bf16=bf16)
    if recompute:
        return enters.times(spec.depth).plus(inside)
    return enters.plus(inside).times(spec.depth)


def _insides(spec: ViTSpec, length: int, *, bf16: bool) -> Kept:
    """What a block keeps besides what enters it; two in a row in an axial one."""
    if not spec.axial:
        return _inside(spec, length, spec.patches, bf16=bf16)
    between = Kept(length * spec.width * _stream(spec, bf16=bf16))
    rows, columns = spec.grid
    along = [_inside(spec, length, line, bf16=bf16) for line in (columns, rows)]
    return between.plus(*along)


def _inside(spec: ViTSpec, length: int, line: int, *, bf16: bool) -> Kept:
    """One block over sequences of `line` patches, `length` tokens in all.

    For each token, with width D, MLP width M, and a statistic being an fp32 number:

    - the first norm's 2 statistics and its output D, of which bf16 keeps a copy for each of query,
      key and value, where tokens are fp32
    - attention, see `_attention`
    - the second norm's input D, 2 statistics and output D; the MLP before and after GELU, 2 M
    - with `layer_scale` both branches 2 D; with dropout, its draws 2 D + M

    In bf16 also a copy of all matrices, 4 D^2 + 2 D M.
    """
    width, hidden = spec.width, spec.mlp_dim
    narrow, stream = _narrow(bf16=bf16), _stream(spec, bf16=bf16)
    copies = 3 if bf16 and stream == _WIDE else 1
    token = width * (copies * narrow + stream + narrow) + 2 * hidden * narrow + 4 * _WIDE
    token += 2 * width * narrow if spec.layer_scale else 0
    token += (2 * width + hidden) * narrow if spec.dropout else 0
    matrices = 4 * width**2 + 2 * width * hidden
    own = Kept(length * token, matrices * narrow if bf16 else 0)
    return own.plus(_attention(spec, length, line, bf16=bf16))


def _attention(spec: ViTSpec, length: int, line: int, *, bf16: bool) -> Kept:
    """Queries, keys, values and output 4 D for each token, and a statistic for each of A heads.

    Computed in tiles, it keeps nothing of size T^2. With `qk_norm`, queries and keys before their
    norms, the output in another order, and 4 A statistics. With relative positions it is computed
    step by step in fp32: 3 D and A T weights for each token; and for each sequence the
    patches' queries N D and the distances' keys (2 N - 1) D.
    """
    width, heads, narrow = spec.width, spec.num_heads, _narrow(bf16=bf16)
    token = (2 * width * narrow + 4 * heads * _WIDE) if spec.qk_norm else 0
    if spec.position != "relative":
        token += width * narrow if spec.qk_norm else 0
        return Kept(length * (token + 4 * width * narrow + heads * _WIDE))
    sequences = spec.patches // line
    seen = spec.leading + line
    token += width * narrow + 3 * width * _WIDE + heads * seen * _WIDE
    tables = sequences * (3 * line - 1) * width * narrow
    return Kept(length * token + tables)


def _head(spec: ViTSpec, length: int, *, bf16: bool) -> Kept:
    """From the last norm on: what pooling and the heads read, and the loss."""
    width, narrow = spec.width, _narrow(bf16=bf16)
    heads = 1 + spec.distillation_token
    matrices = (heads * spec.num_classes + (width if spec.hidden_head else 0)) * width
    own = spec.num_classes * _WIDE + 2 * width * narrow
    if spec.pool == "map":
        own += length * width * (2 * narrow if bf16 else _WIDE)  # read by keys and by values
        own += length * (2 * width * narrow + spec.num_heads * _WIDE)
        own += (6 * width + 2 * spec.mlp_dim) * narrow
        matrices += 4 * width**2 + 2 * width * spec.mlp_dim
    elif spec.pool == "cls" and not bf16 and spec.norm_at == "tokens":
        own += length * width * _WIDE  # the slice keeps what it is cut from
    return Kept(own, matrices * narrow if bf16 else 0)


def _colours(spec: ViTSpec, *, bf16: bool) -> Kept:
    """Patches before they are corrupted, what the dense layer reads, all colours, and indices."""
    colours, narrow = COLOUR_LEVELS**3, _narrow(bf16=bf16)
    patch = 2 * spec.width * narrow + colours * _WIDE + 2 * _INDEX
    return Kept(spec.patches * patch, colours * spec.width * narrow if bf16 else 0)


def _mae(objective: MaeSpec, spec: ViTSpec, *, bf16: bool, recompute: bool) -> Kept:
    """The encoder of the patches that are seen, the decoder of all, and the error of all pixels.

    The decoder's blocks are never recomputed.
    """
    narrow, seen, decoder = (
        _narrow(bf16=bf16),
        objective.kept(spec.patches),
        objective.decoder(spec),
    )
    length, width, values = tokens(decoder), decoder.width, decoder.patch_values
    encoder = _encoder(spec, seen, bf16=bf16, recompute=recompute)
    blocks = _blocks(decoder, length, bf16=bf16, recompute=False)
    read = (spec.leading + seen) * spec.width * narrow
    last = length * (width * _WIDE + 2 * _WIDE) + spec.patches * width * narrow
    error = spec.patches * (values + 1) * _WIDE
    matrices = (spec.width + values) * width
    return encoder.plus(blocks, Kept(read + last + error, matrices * narrow if bf16 else 0))


def _kernel(layer: Convolution, *, bf16: bool) -> Kept:
    """Standardised, and on the way there; bf16 keeps the way in fp32."""
    return Kept(once=layer.kernel * (_WIDE + _narrow(bf16=bf16)))


def _max_pool(net: ResNetStemSpec | ResNetSpec, image_px: tuple[int, int], padded: int) -> Kept:
    """What it reads, with its border of `padded` cells in all, and where the maxima were."""
    return Kept(net.width * (padded + cells(shrunk(image_px, 4)) * _INDEX))


def _stem(spec: ViTSpec, *, bf16: bool) -> Kept:
    """Pixels with their border; of each layer what goes into its norm; what is activated.

    Activated are all layers but the last of a unit and its projection, and a unit's sum; the middle
    layer reads a copy with a border. Norms keep two statistics for each group.
    """
    assert spec.stem is not None  # noqa: S101 - the caller has seen it
    net, narrow = spec.stem, _narrow(bf16=bf16)
    first = root(net, spec.image_px)
    grid = shrunk(spec.image_px, 2)
    own = CHANNELS * bordered(spec.image_px, ROOT_SIDE, 2) + 2 * first.outputs
    if cells(grid) != bordered(grid, POOL_SIDE, 2):
        own += net.width * bordered(grid, POOL_SIDE, 2)
    own += net.width * cells(shrunk(grid, 2)) if net.blocks else 0
    for unit in units(net, spec.image_px):
        own += sum(layer.outputs for layer in unit.layers)
        own += unit.first.outputs + unit.middle.outputs + unit.last.outputs
        own += unit.middle.source * bordered(unit.middle.grid, unit.middle.side, unit.middle.stride)
    layers = convolutions(net, spec.image_px)
    indices = net.width * cells(shrunk(grid, 2)) * _INDEX
    statistics = len(layers) * 2 * GROUPS * _WIDE
    kernels = [_kernel(layer, bf16=bf16) for layer in layers]
    patches = Kept(once=spec.patch_values * spec.width * narrow if bf16 else 0)
    return Kept(own * narrow + indices + statistics).plus(patches, *kernels)


def _resnet(spec: ResNetSpec, *, bf16: bool) -> Kept:
    """Pixels; the root's output with a border; units; what enters the last norm, and leaves it."""
    narrow = _narrow(bf16=bf16)
    rows, columns = shrunk(spec.image_px, 2)
    first, ends = root(spec, spec.image_px), spec.features * cells(spec.grid)
    own = CHANNELS * cells(spec.image_px) + spec.width * (rows + 2) * (columns + 2) + 2 * ends
    own += spec.features
    indices = spec.width * cells(shrunk(spec.image_px, 4)) * _INDEX
    whole = Kept(own * narrow + indices + spec.num_classes * _WIDE + 2 * GROUPS * _WIDE)
    enters = sum(unit.first.inputs for unit in units(spec, spec.image_px)) * narrow
    head = Kept(once=spec.features * spec.num_classes * narrow if bf16 else 0)
    return whole.plus(_kernel(first, bf16=bf16), Kept(enters), head, *_units(spec, bf16=bf16))


def _units(spec: ResNetSpec, *, bf16: bool) -> list[Kept]:
    """What each unit keeps besides what enters it."""
    return [_unit(unit, bf16=bf16) for unit in units(spec, spec.image_px)]


def _unit(unit: Unit, *, bf16: bool) -> Kept:
    """Of one that normalises first, besides what enters it: what is activated, and in between."""
    own = unit.first.inputs + 2 * unit.first.outputs + 2 * unit.middle.outputs
    kernels = [_kernel(layer, bf16=bf16) for layer in unit.layers]
    return Kept(own * _narrow(bf16=bf16) + 3 * 2 * GROUPS * _WIDE).plus(*kernels)
