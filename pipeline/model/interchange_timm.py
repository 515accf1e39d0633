"""The layout of timm's Vision Transformers, also that of DeiT's, MAE's and DINOv2's own files.

A state dict says neither heads nor GELU nor pixel range; timm's hub folder says them beside it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.model.interchange_names import (
    PATCH_OIHW,
    ROW,
    ROWS,
    SAME,
    THREE,
    TWO,
    Fields,
    Form,
    Read,
    Row,
    Rule,
    Tensors,
    Written,
    check_expressible,
    expand,
    image_of_tokens,
    in_words,
    read_weights,
    require,
    resolve,
    square_side,
    unsaid,
    with_table,
    write_weights,
)
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import VARIANTS, ResNetStemSpec, ViTSpec

LAYOUT = "timm"
HEAD_WIDTH = 64
"""Width of a head where nothing says otherwise and no named size fits."""
_EVERY = (
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "blocks.0.norm1.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp.fc1.bias",
)
_ALIASES = {"register_tokens": "reg_token"}
"""DINOv2's own name -> timm's."""
_ASIDE = re.compile(r"mask_token$|decoder_")
"""Parts of self-supervised training that MAE and DINOv2 keep in their files."""


def _pairs(*names: tuple[str, str], form: Form = SAME) -> tuple[Row, ...]:
    """A line for weight and bias of each layer."""
    return tuple(
        (f"{theirs}.{part}", " ".join(f"{our}.{part}" for our in ours.split()), form)
        for theirs, ours in names
        for part in ("weight", "bias")
    )


_PATCH: tuple[Row, ...] = (
    ("patch_embed.proj.weight", "patch.weight", PATCH_OIHW),
    ("patch_embed.proj.bias", "patch.bias", SAME),
)
_BLOCK: tuple[Row, ...] = (
    *_pairs(("norm1", "norm1"), ("norm2", "norm2")),
    *_pairs(("attn.qkv", "attention.query attention.key attention.value"), form=THREE),
    *_pairs(("attn.proj", "attention.out"), ("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
)
_QK_NORM = _pairs(("attn.q_norm", "attention.query_norm"), ("attn.k_norm", "attention.key_norm"))
_LAYER_SCALE: tuple[Row, ...] = (("ls1.gamma", "scale1", SAME), ("ls2.gamma", "scale2", SAME))
_POOLING: tuple[Row, ...] = (
    ("latent", "probe", ROW),
    *_pairs(("q", "attention.query"), ("proj", "attention.out"), ("norm", "norm")),
    *_pairs(("kv", "attention.key attention.value"), form=TWO),
    *_pairs(("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
)
_UNIT: tuple[Row, ...] = tuple(
    row
    for index in (1, 2, 3)
    for row in (
        (f"conv{index}.weight", f"conv{index}.weight", SAME),
        *_pairs((f"norm{index}", f"norm{index}")),
    )
)
_PROJECT: tuple[Row, ...] = (
    ("downsample.conv.weight", "project.weight", SAME),
    *_pairs(("downsample.norm", "project_norm")),
)
_ROOT: tuple[Row, ...] = (("conv.weight", "root.weight", SAME), *_pairs(("norm", "root_norm")))

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
    said = _said(config or {})
    known, defaults = _describe(found, said)
    prefix = _Prefix(found, known, defaults, said)
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
    names = tuple((config or {}).get("pretrained_cfg", {}).get("label_names") or ())
    return Read(spec, weights, names, assumed, dropped, prefix.notes)


def _said(config: Mapping[str, Any]) -> Fields:
    """What timm's hub configuration says of conventions, in our words."""
    shown, args = config.get("pretrained_cfg", {}), config.get("model_args", {})
    pool = args.get("global_pool", config.get("global_pool"))
    if pool is not None and pool not in _POOLS:
        raise SpecError(f"timm's global_pool {pool} is not known; only {', '.join(_POOLS)} are")
    gelu = args.get("act_layer")
    if gelu is not None and gelu not in _GELUS:
        raise SpecError(f"timm's act_layer {gelu} is not known; only {', '.join(_GELUS)} are")
    size = args.get("img_size", (shown.get("input_size") or (3,))[1:])
    found = {
        "pool": _POOLS.get(pool),
        "gelu": _GELUS.get(gelu) if gelu else None,
        "num_heads": args.get("num_heads"),
        "layer_scale": args.get("init_values"),
        "pool_all": args.get("pool_include_prefix"),
        "pixel_mean": tuple(shown["mean"]) if "mean" in shown else None,
        "pixel_std": tuple(shown["std"]) if "std" in shown else None,
        "image_px": ((size, size) if isinstance(size, int) else tuple(size)) or None,
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
        "num_classes": found["head.bias"].shape[0] if "head.bias" in found else 0,
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
    blocks = tuple(stages[index] for index in range(len(stages)))
    return ResNetStemSpec(blocks=blocks, width=found[name].shape[0], **STEM)


class _Prefix:
    """The tokens before the patches and their positions, brought to what our model has."""

    def __init__(self, found: Tensors, known: Fields, defaults: Fields, said: Fields) -> None:
        self.found, self.known, self.defaults, self.said = found, known, defaults, said
        self.notes: tuple[str, ...] = ()
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            shape = list(found[name].shape) if name in found else [1, 1, known["width"]]
            if len(shape) != 3 or [shape[0], shape[2]] != [1, known["width"]]:
                raise SpecError(f"{name} has the shape {shape} instead of [1, N, {known['width']}]")

    def settle(self, assume: Assumptions) -> None:
        """Decide pooling and positions; `found`, `known` and `defaults` are changed to say them.

        Raises:
            SpecError: If our model cannot do the same.
        """
        pool = self.said.get("pool") or assume.pool or self._likely_pool()
        slots = self._settle_positions(assume)
        if pool == "map" and self._has_prefix() and not self.said.get("pool_all"):
            raise SpecError(
                "map pooling here sees all tokens, and timm's leaves the class token and the "
                "registers out unless pool_include_prefix says otherwise"
            )
        if pool != "map" and self.said.get("pool_all"):
            raise SpecError(f"timm's pool_include_prefix is not known for pooling {pool}")
        is_certain = "pool" in self.said or "cls_token" not in self.found
        (self.known if is_certain else self.defaults)["pool"] = pool
        if pool != "cls" and "cls_token" in self.found:
            self._turn_class_into_register(slots)
            slots = 0
        self.known["registers"] = self._count("reg_token")
        has_table = self.known.get("position") != "none"
        self.known["class_position"] = pool != "cls" or slots > 0 or not has_table

    def _likely_pool(self) -> str:
        if "attn_pool.latent" in self.found:
            return "map"
        averages = "cls_token" not in self.found or "fc_norm.weight" in self.found
        return "gap" if averages else "cls"

    def _has_prefix(self) -> bool:
        return "cls_token" in self.found or "reg_token" in self.found

    def _count(self, name: str) -> int:
        count: int = self.found[name].shape[1] if name in self.found else 0
        return count

    def _settle_positions(self, assume: Assumptions) -> int:
        """Slots of class and distillation token in the table; those of registers are taken out."""
        if "pos_embed" not in self.found:
            self.known |= {"position": "none", "image_px": self._image(assume) or (224, 224)}
            return 0
        leading = self._count("cls_token") + self._count("dist_token")
        registers = self._count("reg_token")
        table = self.found["pos_embed"]
        slots = self._slots(table.shape[1], (leading + registers, leading, 0), assume)
        image = self._image(assume)
        fits = image is not None and self._patches(image) == table.shape[1] - slots
        self.known["image_px"] = (
            image
            if fits and image is not None
            else image_of_tokens(table.shape[1] - slots, self.known["patch_px"], assume)
        )
        if registers and slots == leading + registers:
            # A register with a position is a register that starts elsewhere.
            self.found["reg_token"] = self.found["reg_token"] + table[:, leading:slots]
            self.found["pos_embed"] = torch.cat([table[:, :leading], table[:, slots:]], dim=1)
            slots = leading
        return slots

    def _slots(self, total: int, allowed: tuple[int, ...], assume: Assumptions) -> int:
        """How many rows of the table belong to tokens before the patches."""
        image = self._image(assume)
        if image is not None:
            counts = (self._patches(image),)
            fitting = [slots for slots in allowed if total - slots in counts]
            if fitting or "image_px" in assume.given():
                return fitting[0] if fitting else allowed[1]
        return next((it for it in allowed if square_side(total - it) is not None), allowed[1])

    def _image(self, assume: Assumptions) -> tuple[int, int] | None:
        found: tuple[int, int] | None = assume.given().get("image_px", self.said.get("image_px"))
        return found

    def _patches(self, image_px: tuple[int, int]) -> int:
        patch_px: int = self.known["patch_px"]
        return (image_px[0] // patch_px) * (image_px[1] // patch_px)

    def _turn_class_into_register(self, slots: int) -> None:
        """Where patches alone are pooled, a class token is a token as registers are."""
        if "dist_token" in self.found:
            raise SpecError("a distillation token goes with pooling cls alone")
        token = self.found.pop("cls_token")
        if "pos_embed" in self.found:
            table = self.found["pos_embed"]
            token = token + table[:, :slots] if slots else token
            self.found["pos_embed"] = table[:, slots:]
        others = [self.found["reg_token"]] if "reg_token" in self.found else []
        self.found["reg_token"] = torch.cat([token, *others], dim=1)
        self.notes = ("the class token is a register here, because patches alone are pooled",)


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
    made += expand(_pairs(("fc_norm" if spec.norm_at == "pooled" else "norm", "norm")))
    made += expand(_POOLING, "attn_pool.", "pooling.") if spec.pool == "map" else []
    if spec.num_classes:
        made += expand(_pairs(("head", "head")))
        made += (
            expand(_pairs(("head_dist", "distillation_head"))) if spec.distillation_token else []
        )
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
