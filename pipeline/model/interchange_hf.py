"""The layout of Hugging Face's ViT, DeiT, ViT-MAE and DINOv2 folders.

On disk `transformers` keeps the names of its version 4, in memory it has new ones since version 5;
both are read, those of version 4 are written. `config.json` says nearly everything.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.model.interchange_names import (
    BESIDE_ZEROS,
    PATCH_OIHW,
    ROW,
    ROWS,
    SAME,
    Fields,
    Form,
    Read,
    Row,
    Rule,
    Tensors,
    Written,
    check_expressible,
    expand,
    read_weights,
    require,
    resolve,
    with_table,
    write_weights,
)
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import ViTSpec

LAYOUT = "hf"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def _pairs(*names: tuple[str, str], form: Form = SAME) -> tuple[Row, ...]:
    """A line for weight and bias of each layer."""
    return tuple(
        (f"{theirs}.{part}", f"{ours}.{part}", form)
        for theirs, ours in names
        for part in ("weight", "bias")
    )


_FRAME: tuple[Row, ...] = (
    ("embeddings.cls_token", "class_token", ROW),
    ("embeddings.position_embeddings", "position", ROWS),
    ("embeddings.patch_embeddings.projection.weight", "patch.weight", PATCH_OIHW),
    ("embeddings.patch_embeddings.projection.bias", "patch.bias", SAME),
    *_pairs(("layernorm", "norm")),
)
_ATTENTION = _pairs(
    ("attention.attention.query", "attention.query"),
    ("attention.attention.key", "attention.key"),
    ("attention.attention.value", "attention.value"),
    ("attention.output.dense", "attention.out"),
)
_VIT_BLOCK: tuple[Row, ...] = _ATTENTION + _pairs(
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("intermediate.dense", "dense1"),
    ("output.dense", "dense2"),
)
_DINOV2_BLOCK: tuple[Row, ...] = (
    *_ATTENTION,
    *_pairs(("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
    ("layer_scale1.lambda1", "scale1", SAME),
    ("layer_scale2.lambda1", "scale2", SAME),
)
_NEW_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
    )
)
_NEW_VIT_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )
)
"""Names of version 5 -> those of version 4."""


class _Family(NamedTuple):
    """One `model_type`."""

    prefix: str
    """Of the backbone's names in a model with a head."""
    block: tuple[Row, ...]
    defaults: Fields
    """Fields of `config.json` where it leaves them out."""
    resize: str
    """Our name of how its code resizes positions."""
    pixels: Fields
    """What its processors normalise with, where no file says it."""
    aside: re.Pattern[str] | None = None
    """Names that belong to its pre-training."""


_SIZES: Fields = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_VIT: Fields = {**_SIZES, "intermediate_size": 3072, "layer_norm_eps": 1e-12}
_DINOV2: Fields = {
    **_SIZES,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
_HALF: Fields = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)}
_IMAGENET: Fields = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
_MASK = re.compile(r"embeddings\.mask_token$")
_FAMILIES: dict[str, _Family] = {
    "vit": _Family("vit.", _VIT_BLOCK, _VIT, "hf", _HALF),
    "deit": _Family("deit.", _VIT_BLOCK, _VIT, "hf", _IMAGENET),
    "vit_mae": _Family("vit.", _VIT_BLOCK, _VIT, "hf", _IMAGENET, re.compile(r"decoder\.")),
    "dinov2": _Family("dinov2.", _DINOV2_BLOCK, _DINOV2, "hf", _IMAGENET, _MASK),
    "dinov2_with_registers": _Family(
        "dinov2_with_registers.", _DINOV2_BLOCK, _DINOV2, "timm", _IMAGENET, _MASK
    ),
}
_GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def read(
    tensors: Mapping[str, Tensor],
    assume: Assumptions,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
) -> Read:
    """A model from a folder of `transformers`.

    Args:
        tensors: By the names of version 4 or 5.
        assume: What the user says.
        config: Content of `config.json`.
        preprocessor: Content of `preprocessor_config.json`, where there is one.

    Raises:
        SpecError: If it is another kind of model, or one that ours cannot be; with what is missing,
            unexpected or misshapen.
    """
    kind = config.get("model_type")
    family = _FAMILIES.get(str(kind))
    if family is None:
        raise SpecError(
            f"config.json says model_type {kind}; of Hugging Face's models "
            f"{', '.join(_FAMILIES)} are read"
        )
    found, dropped = _canonical(tensors, family)
    require(found, [row[0] for row in _FRAME], layout=LAYOUT)
    said = {**family.defaults, **config}
    _check_config(said)
    found, notes = _settle_tokens(found, dino=family.block is _DINOV2_BLOCK)
    known = _known(found, said)
    defaults: Fields = {"position_resize": family.resize}
    pixels = _pixels(preprocessor)
    known, defaults = (known | pixels, defaults) if pixels else (known, defaults | family.pixels)
    spec, assumed = resolve(known, defaults, assume, layout=LAYOUT)
    weights = read_weights(found, rules(spec, family), spec, layout=LAYOUT)
    return Read(spec, weights, _class_names(config), assumed, dropped, notes)


def _canonical(tensors: Mapping[str, Tensor], family: _Family) -> tuple[Tensors, tuple[str, ...]]:
    """Tensors by the backbone's names of version 4, and the names of pre-training's own parts."""
    renames = _NEW_NAMES + (_NEW_VIT_NAMES if family.block is _VIT_BLOCK else ())
    found: Tensors = {}
    aside: list[str] = []
    for full, tensor in tensors.items():
        name = full.removeprefix(family.prefix)
        if family.aside is not None and family.aside.match(name):
            aside.append(full)
            continue
        for pattern, old in renames:
            name = pattern.sub(old, name)
        found[name] = tensor
    return found, tuple(sorted(aside))


def _check_config(said: Fields) -> None:
    """Refuse what the tensors' names alone would not betray."""
    if said.get("use_swiglu_ffn"):
        raise SpecError("this DINOv2 has a gated MLP (use_swiglu_ffn), which our ViT has not")
    if said["hidden_act"] not in _GELUS:
        raise SpecError(
            f"config.json says hidden_act {said['hidden_act']}; {', '.join(_GELUS)} are known"
        )
    if said["num_channels"] != 3 or not said["qkv_bias"]:
        raise SpecError(
            f"config.json says num_channels {said['num_channels']} and qkv_bias "
            f"{said['qkv_bias']}; our ViT has 3 channels, and biases on query, key and value"
        )


def _settle_tokens(found: Tensors, *, dino: bool) -> tuple[Tensors, tuple[str, ...]]:
    """A distillation token without a head, and DINOv2's double classifier, as far as we can.

    Raises:
        SpecError: If the classifier reads more than the class token.
    """
    if dino and "classifier.weight" in found:
        weight = found["classifier.weight"]
        if weight.ndim == 2 and weight[:, weight.shape[1] // 2 :].count_nonzero():
            raise SpecError(
                "DINOv2's classifier reads the class token beside the mean of the patches, which "
                "no pooling of our ViT gives; import the backbone without classifier.weight"
            )
    name = "embeddings.distillation_token"
    if name not in found or "distillation_classifier.weight" in found:
        return found, ()
    table = found["embeddings.position_embeddings"]
    if table.ndim != 3 or table.shape[1] < 2:
        raise SpecError(f"embeddings.position_embeddings has the shape {list(table.shape)}")
    changed = {
        "embeddings.register_tokens": found[name] + table[:, 1:2],
        "embeddings.position_embeddings": torch.cat([table[:, :1], table[:, 2:]], dim=1),
    }
    others = {it: tensor for it, tensor in found.items() if it != name}
    return others | changed, ("the distillation token is a register here, for it has no head",)


def _known(found: Tensors, said: Fields) -> Fields:
    """What configuration and names say, in our words."""
    head = next((it for it in ("classifier", "cls_classifier") if f"{it}.bias" in found), None)
    has_registers = "embeddings.register_tokens" in found
    known: Fields = {
        "width": said["hidden_size"],
        "depth": said["num_hidden_layers"],
        "num_heads": said["num_attention_heads"],
        "mlp_dim": _mlp_dim(said),
        "patch_px": _side(said["patch_size"]),
        "image_px": _sides(said["image_size"]),
        "num_classes": found[f"{head}.bias"].shape[0] if head else 0,
        "pool": "cls",
        "gelu": _GELUS[said["hidden_act"]],
        "layer_norm_eps": float(said["layer_norm_eps"]),
        "distillation_token": "embeddings.distillation_token" in found,
        "registers": found["embeddings.register_tokens"].shape[1] if has_registers else 0,
        "hidden_head": "pooler.dense.weight" in found,
    }
    if "layerscale_value" in said:
        known["layer_scale"] = float(said["layerscale_value"])
    return known


def _mlp_dim(said: Fields) -> int:
    return said.get("intermediate_size") or int(said["hidden_size"] * said["mlp_ratio"])


def _sides(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def _side(value: Any) -> int:
    height, width = _sides(value)
    if height != width:
        raise SpecError(f"config.json says patches of {height} x {width} px; ours are square")
    return height


def _pixels(preprocessor: Mapping[str, Any] | None) -> Fields:
    if not preprocessor or "image_mean" not in preprocessor or "image_std" not in preprocessor:
        return {}
    return {
        "pixel_mean": tuple(map(float, preprocessor["image_mean"])),
        "pixel_std": tuple(map(float, preprocessor["image_std"])),
    }


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes, unless they are the numbered ones that stand where there are none."""
    names = config.get("id2label") or {}
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in ordered) else ordered


def rules(spec: ViTSpec, family: _Family) -> list[Rule]:
    """The table of a model, names without the backbone's prefix."""
    made = expand(_FRAME)
    if spec.distillation_token:
        made += expand((("embeddings.distillation_token", "distillation_token", ROW),))
    if spec.registers:
        made += expand((("embeddings.register_tokens", "registers", ROWS),))
    for index in range(spec.depth):
        made += expand(family.block, f"encoder.layer.{index}.", f"blocks.{index}.")
    made += expand(_pairs(("pooler.dense", "hidden"))) if spec.hidden_head else []
    return made + (expand(_head_rows(spec, family)) if spec.num_classes else [])


def _head_rows(spec: ViTSpec, family: _Family) -> tuple[Row, ...]:
    if spec.distillation_token:
        return _pairs(("cls_classifier", "head"), ("distillation_classifier", "distillation_head"))
    form = BESIDE_ZEROS if family.block is _DINOV2_BLOCK else SAME
    return (("classifier.weight", "head.weight", form), ("classifier.bias", "head.bias", SAME))


_LIMITS: dict[str, tuple[Any, ...]] = {
    "pool": ("cls",),
    "position": ("learned_1d",),
    "position_at": ("stem",),
    "class_position": (True,),
    "qk_norm": (False,),
    "axial": (False,),
    "norm_at": ("tokens",),
}


def write(
    spec: ViTSpec, weights: Mapping[str, Tensor], class_names: tuple[str, ...] = ()
) -> Written:
    """The tensors of `model.safetensors`, `config.json` and `preprocessor_config.json`.

    Raises:
        SpecError: If none of Hugging Face's models is the same.
    """
    spec, weights, notes = with_table(spec, weights, kept=("learned_1d",))
    check_expressible(spec, _LIMITS, layout=LAYOUT)
    kind, model_class = _kind(spec)
    family = _FAMILIES[kind]
    made = write_weights(weights, rules(spec, family), spec)
    prefix = family.prefix if "For" in model_class else ""
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.")
    named = {it if it.startswith(heads) else prefix + it: made[it] for it in made}
    if kind == "dinov2_with_registers":
        # Part of that class, used in pre-training alone.
        named[f"{prefix}embeddings.mask_token"] = torch.zeros(1, spec.width)
    documents = {
        CONFIG: _config(spec, kind, model_class, class_names),
        PREPROCESSOR: _preprocessor(spec),
    }
    return Written(named, notes, documents)


def _kind(spec: ViTSpec) -> tuple[str, str]:
    """`model_type` and class of the model of Hugging Face that is the same."""
    has_head = spec.num_classes > 0
    for sentence in _conflicts(spec):
        raise SpecError(f"no model of Hugging Face is the same: {sentence}")
    if spec.layer_scale is not None:
        kind, name = ("dinov2", "Dinov2")
        if spec.registers:
            kind, name = "dinov2_with_registers", "Dinov2WithRegisters"
        return kind, f"{name}ForImageClassification" if has_head else f"{name}Model"
    if spec.distillation_token:
        return "deit", "DeiTForImageClassificationWithTeacher"
    return "vit", "ViTModel" if spec.hidden_head else "ViTForImageClassification"


def _conflicts(spec: ViTSpec) -> Iterator[str]:
    """What its models cannot have together, one sentence each."""
    if spec.stem is not None:
        yield "none has a ResNet stem"
    if spec.distillation_token and not spec.num_classes:
        yield "without its two heads a distillation token is not told from a register"
    if spec.hidden_head and (spec.num_classes or spec.layer_scale is not None):
        yield "a tanh layer (hidden_head) goes with its plain ViT without a classifier alone"
    if spec.layer_scale is not None:
        yield from _dinov2_conflicts(spec)
    elif spec.registers:
        yield "its models with registers have LayerScale"


def _dinov2_conflicts(spec: ViTSpec) -> Iterator[str]:
    rows, columns = spec.grid
    if spec.distillation_token:
        yield "its models with LayerScale have no distillation token"
    if rows != columns:
        yield f"its models with LayerScale know square grids only, not {rows} x {columns}"
    if spec.mlp_dim % spec.width:
        yield f"with LayerScale mlp_dim {spec.mlp_dim} must be a multiple of width {spec.width}"


def _config(spec: ViTSpec, kind: str, name: str, class_names: tuple[str, ...]) -> Fields:
    height, width = spec.image_px
    classes = class_names or tuple(f"LABEL_{index}" for index in range(spec.num_classes))
    config: Fields = {
        "architectures": [name],
        "model_type": kind,
        "dtype": "float32",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "hidden_act": "gelu" if spec.gelu == "erf" else "gelu_pytorch_tanh",
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_px,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": spec.layer_norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(index): label for index, label in enumerate(classes)},
        "label2id": {label: index for index, label in enumerate(classes)},
    }
    if kind.startswith("dinov2"):
        config |= {
            "mlp_ratio": spec.mlp_dim // spec.width,
            "layerscale_value": spec.layer_scale,
            "use_swiglu_ffn": False,
        }
        own = {"num_register_tokens": spec.registers}
        return config | (own if spec.registers else {"use_mask_token": False})
    return config | {"intermediate_size": spec.mlp_dim, "encoder_stride": spec.patch_px}


def _preprocessor(spec: ViTSpec) -> Fields:
    """What our evaluation does: the largest centred part, resized; for squares in their terms."""
    height, width = spec.image_px
    square = height == width
    return {
        "image_processor_type": "BitImageProcessor" if square else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.pixel_mean),
        "image_std": list(spec.pixel_std),
    }
