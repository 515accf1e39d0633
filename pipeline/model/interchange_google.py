"""The layout of the ViT authors' `.npz` files: original, AugReg, SAM, hybrids, and big_vision's.

Names vary: a prefix says what wrote the file; before Flax's Linen interface layers were numbered
through; norms of the ResNet stem may have four axes; scan models stack their blocks. All of it is
brought to one canonical form, which is big_vision's, and compared with the tables below.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pipeline.model.interchange_names import (
    CONV_HWIO,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    KERNEL,
    PATCH_HWIO,
    ROW,
    ROWS,
    SAME,
    Fields,
    Read,
    Row,
    Rule,
    Tensors,
    Written,
    check_expressible,
    expand,
    first_axis,
    image_of_tokens,
    in_words,
    read_weights,
    require,
    resolve,
    stem_of,
    unsaid,
    with_table,
    write_weights,
)
from schemas.interchange import Assumptions
from schemas.model import ResNetStemSpec, ViTSpec

LAYOUT = "google"
_BLOCK = "Transformer/encoderblock_"
_ATTENTION: tuple[Row, ...] = (
    ("query/kernel", "query.weight", HEADS_IN),
    ("query/bias", "query.bias", HEADS_BIAS),
    ("key/kernel", "key.weight", HEADS_IN),
    ("key/bias", "key.bias", HEADS_BIAS),
    ("value/kernel", "value.weight", HEADS_IN),
    ("value/bias", "value.bias", HEADS_BIAS),
    ("out/kernel", "out.weight", HEADS_OUT),
    ("out/bias", "out.bias", SAME),
)
_MLP: tuple[Row, ...] = (
    ("Dense_0/kernel", "dense1.weight", KERNEL),
    ("Dense_0/bias", "dense1.bias", SAME),
    ("Dense_1/kernel", "dense2.weight", KERNEL),
    ("Dense_1/bias", "dense2.bias", SAME),
)
_FRAME: tuple[Row, ...] = (
    ("embedding/kernel", "patch.weight", PATCH_HWIO),
    ("embedding/bias", "patch.bias", SAME),
    ("Transformer/encoder_norm/scale", "norm.weight", SAME),
    ("Transformer/encoder_norm/bias", "norm.bias", SAME),
)
_HIDDEN: tuple[Row, ...] = (
    ("pre_logits/kernel", "hidden.weight", KERNEL),
    ("pre_logits/bias", "hidden.bias", SAME),
)
_HEAD: tuple[Row, ...] = (
    ("head/kernel", "head.weight", KERNEL),
    ("head/bias", "head.bias", SAME),
)
_ROOT: tuple[Row, ...] = (
    ("conv_root/kernel", "root.weight", CONV_HWIO),
    ("gn_root/scale", "root_norm.weight", SAME),
    ("gn_root/bias", "root_norm.bias", SAME),
)
_NORMS: tuple[Row, ...] = (
    ("LayerNorm_0/scale", "norm1.weight", SAME),
    ("LayerNorm_0/bias", "norm1.bias", SAME),
    ("LayerNorm_1/scale", "norm2.weight", SAME),
    ("LayerNorm_1/bias", "norm2.bias", SAME),
)
_POOLING: tuple[Row, ...] = (
    ("probe", "probe", ROW),
    ("LayerNorm_0/scale", "norm.weight", SAME),
    ("LayerNorm_0/bias", "norm.bias", SAME),
)
_UNIT: tuple[Row, ...] = tuple(
    row
    for index in (1, 2, 3)
    for row in (
        (f"conv{index}/kernel", f"conv{index}.weight", CONV_HWIO),
        (f"gn{index}/scale", f"norm{index}.weight", SAME),
        (f"gn{index}/bias", f"norm{index}.bias", SAME),
    )
)
_PROJECT: tuple[Row, ...] = (
    ("conv_proj/kernel", "project.weight", CONV_HWIO),
    ("gn_proj/scale", "project_norm.weight", SAME),
    ("gn_proj/bias", "project_norm.bias", SAME),
)

_ASIDE: dict[str, re.Pattern[str] | None] = {
    "": None,
    "opt/target/": re.compile(r"opt/state/"),
    "params/": re.compile(r"(opt|chrono|states)/"),
    "params/img/": re.compile(r"params/txt/|params/(t|b)$|(opt|chrono|states)/"),
}
"""Prefix of the model -> what stands beside it in such files: optimizer, text tower, clocks."""

_LINEN = (
    (re.compile(r"/MultiHeadDotProductAttention_1/"), "/MultiHeadDotProductAttention_0/"),
    (re.compile(r"/LayerNorm_2/"), "/LayerNorm_1/"),
    (re.compile(r"/MlpBlock_3/"), "/MlpBlock_0/"),
)
"""Numbers of layers before Linen -> after it."""
_PRE_LINEN = (
    ("/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
    ("/LayerNorm_1/", "/LayerNorm_2/"),
    ("/MlpBlock_0/", "/MlpBlock_3/"),
)
_SCAN = "Transformer/encoderblock/"
_FIRST_QUERY = f"{_BLOCK}0/MultiHeadDotProductAttention_0/query/kernel"
_EVERY = {
    "embedding/kernel": 4,
    "embedding/bias": 1,
    "Transformer/encoder_norm/scale": 1,
    _FIRST_QUERY: 3,
    f"{_BLOCK}0/MlpBlock_0/Dense_0/bias": 1,
}
"""Names of every such file, and their axes."""
_OLD_POSITION, _POSITION = "Transformer/posembed_input/pos_embedding", "pos_embedding"

_LIMITS: dict[str, tuple[Any, ...]] = {
    "position": ("learned_1d", "sincos_2d"),
    "position_at": ("stem",),
    "registers": (0,),
    "distillation_token": (False,),
    "layer_scale": (None,),
    "qk_norm": (False,),
    "axial": (False,),
    "norm_at": ("tokens",),
}
CONVENTIONS: Fields = {
    "gelu": "tanh",
    "layer_norm_eps": 1e-6,
    "pixel_mean": (0.5, 0.5, 0.5),
    "pixel_std": (0.5, 0.5, 0.5),
}
"""What the authors' code computes with; no file says it."""
STEM: Fields = {"group_norm_eps": 1e-6, "weight_std": "jax", "weight_std_eps": 1e-5}


def read(tensors: Mapping[str, Tensor], assume: Assumptions) -> Read:
    """A model from the arrays of an `.npz`.

    Raises:
        SpecError: If they are not those of a ViT; with what is missing, unexpected or misshapen.
    """
    found, dropped = canonical(tensors)
    require(found, _EVERY, layout=LAYOUT)
    known, defaults = _describe(found, assume)
    spec, assumed = resolve(known, defaults, assume, layout=LAYOUT)
    weights = read_weights(found, rules(spec), spec, layout=LAYOUT)
    assumed += in_words(STEM, "stem.") if spec.stem else ()
    return Read(spec, weights, assumed=assumed, dropped=dropped)


def canonical(tensors: Mapping[str, Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of the model under canonical names, and the names of what stands beside it."""
    fitting = [prefix for prefix in _ASIDE if f"{prefix}embedding/kernel" in tensors]
    prefix = max(fitting, key=len, default="")
    pattern = _ASIDE[prefix]
    found: Tensors = {}
    aside: list[str] = []
    for name, tensor in tensors.items():
        if pattern is not None and pattern.match(name):
            aside.append(name)
            continue
        short = name.removeprefix(prefix)
        for full, part in _unstacked(short, tensor):
            found[_numbered(full)] = _squeezed(full, part)
    return found, tuple(sorted(aside))


def _unstacked(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of one block each, where a scan model has all blocks in one."""
    if not name.startswith(_SCAN) or tensor.ndim == 0:
        yield name, tensor
        return
    for index, part in enumerate(tensor):
        yield f"{_BLOCK}{index}/{name.removeprefix(_SCAN)}", part


def _numbered(name: str) -> str:
    for pattern, new in _LINEN:
        name = pattern.sub(new, name)
    return name


def _squeezed(name: str, tensor: Tensor) -> Tensor:
    """Norms of the stem were saved with all four axes once."""
    is_norm = re.search(r"(^|/)gn\w+/(scale|bias)$", name) is not None
    return tensor.flatten() if is_norm and tensor.shape[:3] == (1, 1, 1) else tensor


def _describe(found: Mapping[str, Tensor], assume: Assumptions) -> tuple[Fields, Fields]:
    """What the names and shapes say, and what is left open."""
    defaults: Fields = {**CONVENTIONS, "position_resize": "jax"}
    heads = found[_FIRST_QUERY].shape
    kernel = found["embedding/kernel"].shape
    stem = _stem(found)
    pool = "map" if "MAPHead_0/probe" in found else "cls" if "cls" in found else "gap"
    known: Fields = {
        "width": kernel[-1],
        "depth": len({name.split("/")[1] for name in found if name.startswith(_BLOCK)}),
        "num_heads": heads[1],
        "mlp_dim": found[f"{_BLOCK}0/MlpBlock_0/Dense_0/bias"].shape[0],
        "patch_px": kernel[0] * (stem.stride if stem else 1),
        "num_classes": first_axis(found, "head/bias"),
        "pool": pool,
        "hidden_head": "pre_logits/kernel" in found,
        "stem": stem,
    }
    if _OLD_POSITION not in found and _POSITION not in found:
        # big_vision computes these positions; it knows no other kind that has no table.
        known |= {"position": "sincos_2d", "class_position": pool != "cls"}
        return known, defaults | {"image_px": (224, 224)}
    table = found.get(_OLD_POSITION, found.get(_POSITION))
    assert table is not None  # noqa: S101  # one of both is there
    has_slot = _OLD_POSITION in found and pool == "cls"
    count = table.shape[1] - has_slot if table.ndim == 3 else 0
    known["image_px"] = image_of_tokens(count, known["patch_px"], assume)
    return known | {"class_position": has_slot or pool != "cls"}, defaults


def _stem(found: Mapping[str, Tensor]) -> ResNetStemSpec | None:
    """The ResNet in front of a hybrid, its blocks counted by their names."""
    if "conv_root/kernel" not in found or "gn_root/scale" not in found:
        return None
    pattern = re.compile(r"block(\d+)/unit(\d+)/")
    units = {match.groups() for name in found if (match := pattern.match(name))}
    stages = Counter(int(stage) - 1 for stage, _ in units)
    return stem_of(stages, found["gn_root/scale"].numel(), STEM)


def rules(spec: ViTSpec) -> list[Rule]:
    """The canonical table of a model."""
    made = expand(_FRAME)
    if spec.pool == "cls":
        made += expand((("cls", "class_token", ROW),))
    if spec.position == "learned_1d":
        made += expand(((_position_name(spec), "position", ROWS),))
    for index in range(spec.depth):
        theirs, ours = f"{_BLOCK}{index}/", f"blocks.{index}."
        made += expand(_NORMS, theirs, ours)
        made += expand(_ATTENTION, f"{theirs}MultiHeadDotProductAttention_0/", f"{ours}attention.")
        made += expand(_MLP, f"{theirs}MlpBlock_0/", ours)
    if spec.pool == "map":
        theirs, ours = "MAPHead_0/", "pooling."
        made += expand(_POOLING, theirs, ours)
        made += expand(_ATTENTION, f"{theirs}MultiHeadDotProductAttention_0/", f"{ours}attention.")
        made += expand(_MLP, f"{theirs}MlpBlock_0/", ours)
    made += expand(_HIDDEN) if spec.hidden_head else []
    made += expand(_HEAD) if spec.num_classes else []
    return made + _stem_rules(spec.stem)


def _stem_rules(stem: ResNetStemSpec | None) -> list[Rule]:
    if stem is None:
        return []
    made = expand(_ROOT, "", "stem.")
    for stage, count in enumerate(stem.blocks):
        for unit in range(count):
            theirs, ours = f"block{stage + 1}/unit{unit + 1}/", f"stem.stages.{stage}.{unit}."
            made += expand(_UNIT, theirs, ours)
            made += expand(_PROJECT, theirs, ours) if unit == 0 else []
    return made


def _position_name(spec: ViTSpec) -> str:
    return _OLD_POSITION if _is_old(spec) else _POSITION


def _is_old(spec: ViTSpec) -> bool:
    """Whether the authors' first layout can hold it; what came later is big_vision's."""
    return spec.pool == "cls" and spec.class_position and spec.position == "learned_1d"


def write(spec: ViTSpec, weights: Mapping[str, Tensor]) -> Written:
    """The arrays of an `.npz`: as the ViT's authors wrote them, or as big_vision does.

    The second is for models without a class token, or with one that has no position.

    Raises:
        SpecError: If the layout has no words for the model.
    """
    kept = ("learned_1d",) if spec.slots else ("learned_1d", "sincos_2d")
    spec, weights, notes = with_table(spec, weights, kept=kept)
    check_expressible(spec, _LIMITS, layout=LAYOUT)
    made = write_weights(weights, rules(spec), spec)
    notes += unsaid(spec, CONVENTIONS, layout=LAYOUT)
    if spec.stem is not None:
        notes += unsaid(spec.stem, STEM, layout=LAYOUT)
    if not _is_old(spec):
        return Written({f"params/{name}": tensor for name, tensor in made.items()}, notes)
    return Written({_renumbered(name): tensor for name, tensor in made.items()}, notes)


def _renumbered(name: str) -> str:
    for new, old in _PRE_LINEN:
        name = name.replace(new, old)
    return name
