"""The layout of timm's Vision Transformers, also that of DeiT's, MAE's and DINOv2's own files.

A state dict says neither heads nor GELU nor pixel range; timm's hub folder says them beside it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.model.interchange_documents import TimmConfig, read_document, sides
from pipeline.model.interchange_names import (
    PATCH_OIHW,
    ROW,
    ROWS,
    SAME,
    THREE,
    TWO,
    Fields,
    Read,
    Row,
    Rule,
    Written,
    check_expressible,
    expand,
    first_axis,
    in_words,
    pairs,
    read_weights,
    require,
    resolve,
    stem_of,
    unsaid,
    with_table,
    write_weights,
)
from pipeline.model.interchange_prefix import Prefix
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import VARIANTS, ResNetStemSpec, ViTSpec

LAYOUT = "timm"
HEAD_WIDTH = 64
"""Width of a head where nothing says otherwise and no named size fits."""
_EVERY = {
    "patch_embed.proj.weight": 4,
    "patch_embed.proj.bias": 1,
    "blocks.0.norm1.weight": 1,
    "blocks.0.attn.qkv.weight": 2,
    "blocks.0.mlp.fc1.bias": 1,
}
"""Names of every such file, and their axes."""
_ALIASES = {"register_tokens": "reg_token"}
"""DINOv2's own name -> timm's."""
_ASIDE = re.compile(r"mask_token$|decoder_")
"""Parts of self-supervised training that MAE and DINOv2 keep in their files."""


_PATCH: tuple[Row, ...] = (
    ("patch_embed.proj.weight", "patch.weight", PATCH_OIHW),
    ("patch_embed.proj.bias", "patch.bias", SAME),
)
_BLOCK: tuple[Row, ...] = (
    *pairs(("norm1", "norm1"), ("norm2", "norm2")),
    *pairs(("attn.qkv", "attention.query attention.key attention.value"), form=THREE),
    *pairs(("attn.proj", "attention.out"), ("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
)
_QK_NORM = pairs(("attn.q_norm", "attention.query_norm"), ("attn.k_norm", "attention.key_norm"))
_LAYER_SCALE: tuple[Row, ...] = (("ls1.gamma", "scale1", SAME), ("ls2.gamma", "scale2", SAME))
_POOLING: tuple[Row, ...] = (
    ("latent", "probe", ROW),
    *pairs(("q", "attention.query"), ("proj", "attention.out"), ("norm", "norm")),
    *pairs(("kv", "attention.key attention.value"), form=TWO),
    *pairs(("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
)
_UNIT: tuple[Row, ...] = tuple(
    row
    for index in (1, 2, 3)
    for row in (
        (f"conv{index}.weight", f"conv{index}.weight", SAME),
        *pairs((f"norm{index}", f"norm{index}")),
    )
)
_PROJECT: tuple[Row, ...] = (
    ("downsample.conv.weight", "project.weight", SAME),
    *pairs(("downsample.norm", "project_norm")),
)
_ROOT: tuple[Row, ...] = (("conv.weight", "root.weight", SAME), *pairs(("norm", "root_norm")))

CONVENTIONS: Fields = {
    "gelu": "erf",
    "layer_norm_eps": 1e-6,
    "pixel_mean": (0.5, 0.5, 0.5),
    "pixel_std": (0.5, 0.5, 0.5),
}
STEM: Fields = {"group_norm_eps": 1e-5, "weight_std": "timm", "weight_std_eps": 1e-8}
_IMAGENET: Fields = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
_LIMITS: dict[str, tuple[Any, ...]] = {
    "position": ("learned_1d", "none"),
    "position_at": ("stem",),
    "axial": (False,),
    "hidden_head": (False,),
}
_POOLS = {"token": "cls", "avg": "gap", "map": "map"}
_GELUS = {"gelu": "erf", "gelu_tanh": "tanh"}


def read(
    tensors: Mapping[str, Tensor], assume: Assumptions, config: Mapping[str, Any] | None = None
) -> Read:
    """A model from a state dict.

    Args:
        tensors: By timm's names, or DINOv2's own.
        assume: What the user says.
        config: Content of the `config.json` of timm's hub folder, where there is one.

    Raises:
        SpecError: If they are not those of a ViT; with what is missing, unexpected or misshapen.
    """
    dropped = tuple(sorted(name for name in tensors if _ASIDE.match(name)))
    found = {_ALIASES.get(it, it): tensors[it] for it in tensors if it not in dropped}
    require(found, _EVERY, layout=LAYOUT)
    document = read_document(TimmConfig, config or {}, "config.json")
    said = _said(document)
    known, defaults = _describe(found, said)
    prefix = Prefix(found, known, defaults, said)
    prefix.settle(assume)
    known |= {name: value for name, value in said.items() if name in CONVENTIONS}
    known |= {"num_heads": said["num_heads"]} if "num_heads" in said else {}
    if not {"num_heads"} & (known.keys() | defaults.keys() | assume.given().keys()):
        raise SpecError(
            f"a state dict does not say the number of heads, and none is usual for width "
            f"{known['width']}",
            hint="--set num_heads=N",
        )
    spec, assumed = resolve(known, defaults, assume, layout=LAYOUT)
    weights = read_weights(found, rules(spec), spec, layout=LAYOUT)
    assumed += in_words(STEM, "stem.") if spec.stem else ()
    names = document.pretrained_cfg.label_names or ()
    return Read(spec, weights, names, assumed, dropped, prefix.notes)


def _said(config: TimmConfig) -> Fields:
    """What timm's hub configuration says of conventions, in our words."""
    shown, args = config.pretrained_cfg, config.model_args
    pool = args.global_pool or config.global_pool
    if pool is not None and pool not in _POOLS:
        raise SpecError(f"timm's global_pool {pool} is not known; only {', '.join(_POOLS)} are")
    gelu = args.act_layer
    if gelu is not None and gelu not in _GELUS:
        raise SpecError(f"timm's act_layer {gelu} is not known; only {', '.join(_GELUS)} are")
    size = args.img_size or (shown.input_size and shown.input_size[1:])
    found = {
        "pool": _POOLS.get(pool or ""),
        "gelu": _GELUS.get(gelu or ""),
        "num_heads": args.num_heads,
        "layer_scale": args.init_values,
        "pool_all": args.pool_include_prefix or None,
        "pixel_mean": shown.mean,
        "pixel_std": shown.std,
        "image_px": sides(size) if size else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _describe(found: Mapping[str, Tensor], said: Fields) -> tuple[Fields, Fields]:
    """What names and shapes say, but for the tokens before the patches, and what is left open."""
    stem = _stem(found)
    width, kernel = found["patch_embed.proj.bias"].shape[0], found["patch_embed.proj.weight"].shape
    known: Fields = {
        "width": width,
        "depth": len({name.split(".")[1] for name in found if name.startswith("blocks.")}),
        "mlp_dim": found["blocks.0.mlp.fc1.bias"].shape[0],
        "patch_px": kernel[-1] * (stem.stride if stem else 1),
        "num_classes": first_axis(found, "head.bias"),
        "qk_norm": "blocks.0.attn.q_norm.weight" in found,
        "norm_at": "pooled" if "fc_norm.weight" in found else "tokens",
        "distillation_token": "dist_token" in found,
        "stem": stem,
    }
    if "blocks.0.ls1.gamma" in found:
        known["layer_scale"] = said.get("layer_scale", 1e-5)
    heads = _usual_heads(known)
    defaults: Fields = {**CONVENTIONS, "position_resize": "timm"}
    if "dist_token" in found:
        defaults |= _IMAGENET
    return known, defaults | ({"num_heads": heads} if heads else {})


def _usual_heads(known: Fields) -> int | None:
    """Heads of the named size, or heads of 64; None where neither fits."""
    size = (known["width"], known["depth"], known["mlp_dim"])
    for named in VARIANTS.values():
        if size == (named.width, named.depth, named.mlp_dim):
            return named.num_heads
    return None if known["width"] % HEAD_WIDTH else known["width"] // HEAD_WIDTH


def _stem(found: Mapping[str, Tensor]) -> ResNetStemSpec | None:
    """The ResNet in front of a hybrid, its blocks counted by their names."""
    name = next(
        (it for it in found if re.match(r"patch_embed\.backbone\.(stem\.)?conv\.", it)), None
    )
    if name is None:
        return None
    pattern = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
    units = {match.groups() for it in found if (match := pattern.match(it))}
    stages = Counter(int(stage) for stage, _ in units)
    return stem_of(stages, first_axis(found, name), STEM)


def rules(spec: ViTSpec) -> list[Rule]:
    """The table of a model."""
    made = expand(_PATCH)
    tokens: dict[str, tuple[Row, bool]] = {
        "class": (("cls_token", "class_token", ROW), spec.pool == "cls"),
        "distillation": (("dist_token", "distillation_token", ROW), spec.distillation_token),
        "registers": (("reg_token", "registers", ROWS), spec.registers > 0),
        "position": (("pos_embed", "position", ROWS), spec.position == "learned_1d"),
    }
    made += expand(row for row, is_there in tokens.values() if is_there)
    for index in range(spec.depth):
        rows = _BLOCK + (_QK_NORM if spec.qk_norm else ())
        rows += _LAYER_SCALE if spec.layer_scale is not None else ()
        made += expand(rows, f"blocks.{index}.", f"blocks.{index}.")
    made += expand(pairs(("fc_norm" if spec.norm_at == "pooled" else "norm", "norm")))
    made += expand(_POOLING, "attn_pool.", "pooling.") if spec.pool == "map" else []
    if spec.num_classes:
        made += expand(pairs(("head", "head")))
        made += expand(pairs(("head_dist", "distillation_head"))) if spec.distillation_token else []
    return made + _stem_rules(spec.stem)


def _stem_rules(stem: ResNetStemSpec | None) -> list[Rule]:
    if stem is None:
        return []
    backbone = "patch_embed.backbone."
    made = expand(_ROOT, f"{backbone}stem." if stem.blocks else backbone, "stem.")
    for stage, count in enumerate(stem.blocks):
        for unit in range(count):
            ours = f"stem.stages.{stage}.{unit}."
            theirs = f"{backbone}stages.{stage}.blocks.{unit}."
            made += expand(_UNIT, theirs, ours)
            made += expand(_PROJECT, theirs, ours) if unit == 0 else []
    return made


def write(
    spec: ViTSpec, weights: Mapping[str, Tensor], class_names: tuple[str, ...] = ()
) -> Written:
    """A state dict, and the `config.json` of timm's hub folder.

    Raises:
        SpecError: If the layout has no words for the model.
    """
    spec, weights, notes = with_table(spec, weights, kept=("learned_1d", "none"))
    check_expressible(spec, _LIMITS, layout=LAYOUT)
    if spec.distillation_token and (spec.registers or not spec.class_position):
        raise SpecError("the layout timm cannot express a distillation token beside registers")
    made = write_weights(weights, rules(spec), spec)
    if spec.registers and spec.slots and "pos_embed" in made:
        made["pos_embed"] = _with_rows_for_registers(made["pos_embed"], spec)
    if spec.stem is not None:
        notes += unsaid(spec.stem, STEM, layout=LAYOUT)
    notes += unsaid(spec, {"layer_norm_eps": CONVENTIONS["layer_norm_eps"]}, layout=LAYOUT)
    config = _config(spec, class_names)
    return Written(made, notes, {"config.json": config} if config else {})


def _with_rows_for_registers(table: Tensor, spec: ViTSpec) -> Tensor:
    """Positions in timm have rows for registers where it has one for the class token: zeros."""
    zeros = table.new_zeros(1, spec.registers, spec.width)
    return torch.cat([table[:, : spec.slots], zeros, table[:, spec.slots :]], dim=1)


_ARCHITECTURES: dict[tuple[int, ...] | None, str] = {
    None: "vit_base_patch16_224",
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""Blocks of the stem -> an entry point of timm, whose sizes `model_args` then replace."""


def _config(spec: ViTSpec, class_names: tuple[str, ...]) -> Fields:
    """Content of `config.json`; empty where no entry point of timm makes such a hybrid."""
    blocks = spec.stem.blocks if spec.stem else None
    if blocks not in _ARCHITECTURES:
        return {}
    pool = {ours: theirs for theirs, ours in _POOLS.items()}[spec.pool]
    args: Fields = {
        "img_size": list(spec.image_px),
        "patch_size": spec.patch_side,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_dim / spec.width,
        "global_pool": pool,
        "fc_norm": spec.norm_at == "pooled",
        "class_token": spec.pool == "cls",
        "pos_embed": "learn" if spec.position == "learned_1d" else "none",
        "no_embed_class": not spec.slots,
        "reg_tokens": spec.registers,
        "qk_norm": spec.qk_norm,
        "init_values": spec.layer_scale,
        "act_layer": "gelu_tanh" if spec.gelu == "tanh" else "gelu",
        "pool_include_prefix": spec.pool == "map" and spec.registers > 0,
    }
    architecture = _ARCHITECTURES[blocks]
    if spec.distillation_token:
        architecture = "deit_base_distilled_patch16_224"
        args = {name: value for name, value in args.items() if name not in _UNKNOWN_TO_DEIT}
    shown: Fields = {
        "input_size": [3, *spec.image_px],
        "mean": list(spec.pixel_mean),
        "std": list(spec.pixel_std),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "num_classes": spec.num_classes,
        "first_conv": None,
        "classifier": "head",
    }
    if class_names:
        shown["label_names"] = list(class_names)
    return {
        "architecture": architecture,
        "num_classes": spec.num_classes,
        "num_features": spec.width,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": shown,
    }


_UNKNOWN_TO_DEIT = ("global_pool", "fc_norm", "class_token", "no_embed_class", "reg_tokens")
"""What timm's distilled models fix themselves."""
