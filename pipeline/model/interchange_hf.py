"""The layout of Hugging Face's ViT, DeiT, ViT-MAE and DINOv2 folders.

On disk `transformers` keeps the names of its version 4, in memory it has new ones since version 5;
both are read, those of version 4 are written. `config.json` says nearly everything.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.model.interchange_documents import (
    HfConfig,
    HfPreprocessor,
    read_document,
    sides,
)
from pipeline.model.interchange_hf_documents import config_of, kind_of, preprocessor_of
from pipeline.model.interchange_names import (
    BESIDE_ZEROS,
    PATCH_OIHW,
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
    pairs,
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


_FRAME: tuple[Row, ...] = (
    ("embeddings.cls_token", "class_token", ROW),
    ("embeddings.position_embeddings", "position", ROWS),
    ("embeddings.patch_embeddings.projection.weight", "patch.weight", PATCH_OIHW),
    ("embeddings.patch_embeddings.projection.bias", "patch.bias", SAME),
    *pairs(("layernorm", "norm")),
)
_EVERY = {
    "embeddings.cls_token": 3,
    "embeddings.position_embeddings": 3,
    "embeddings.patch_embeddings.projection.weight": 4,
    "layernorm.weight": 1,
}
"""Names of every such file, and their axes."""
_ATTENTION = pairs(
    ("attention.attention.query", "attention.query"),
    ("attention.attention.key", "attention.key"),
    ("attention.attention.value", "attention.value"),
    ("attention.output.dense", "attention.out"),
)
_VIT_BLOCK: tuple[Row, ...] = _ATTENTION + pairs(
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("intermediate.dense", "dense1"),
    ("output.dense", "dense2"),
)
_DINOV2_BLOCK: tuple[Row, ...] = (
    *_ATTENTION,
    *pairs(("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "dense1"), ("mlp.fc2", "dense2")),
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
    """Fields of `config.json` on whose defaults the families differ."""
    resize: str
    """Our name of how its code resizes positions."""
    pixels: Fields
    """What its processors normalise with, where no file says it."""
    aside: re.Pattern[str] | None = None
    """Names that belong to its pre-training."""


_VIT: Fields = {"layer_norm_eps": 1e-12, "intermediate_size": 3072}
_DINOV2: Fields = {"layer_norm_eps": 1e-6}
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
    require(found, _EVERY, layout=LAYOUT)
    said = read_document(HfConfig, {**family.defaults, **config}, CONFIG)
    _check_config(said)
    found, notes = _settle_tokens(found, dino=family.block is _DINOV2_BLOCK)
    known = _known(found, said, dino=family.block is _DINOV2_BLOCK)
    defaults: Fields = {"position_resize": family.resize}
    pixels = _pixels(preprocessor)
    known, defaults = (known | pixels, defaults) if pixels else (known, defaults | family.pixels)
    spec, assumed = resolve(known, defaults, assume, layout=LAYOUT)
    weights = read_weights(found, rules(spec, family), spec, layout=LAYOUT)
    return Read(spec, weights, _class_names(said), assumed, dropped, notes)


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


def _check_config(said: HfConfig) -> None:
    """Refuse what the tensors' names alone would not betray."""
    if said.use_swiglu_ffn:
        raise SpecError("this DINOv2 has a gated MLP (use_swiglu_ffn), which our ViT has not")
    if said.hidden_act not in _GELUS:
        raise SpecError(
            f"config.json says hidden_act {said.hidden_act}; {', '.join(_GELUS)} are known"
        )
    if said.num_channels != 3 or not said.qkv_bias:
        raise SpecError(
            f"config.json says num_channels {said.num_channels} and qkv_bias {said.qkv_bias}; "
            "our ViT has 3 channels, and biases on query, key and value"
        )
    height, width = sides(said.patch_size)
    if height != width:
        raise SpecError(f"config.json says patches of {height} x {width} px; ours are square")


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
    if table.shape[1] < 2 or found[name].shape != table[:, :1].shape:
        raise SpecError(
            f"{name} has the shape {list(found[name].shape)}, and embeddings.position_embeddings "
            f"{list(table.shape)}; these do not go together"
        )
    changed = {
        "embeddings.register_tokens": found[name] + table[:, 1:2],
        "embeddings.position_embeddings": torch.cat([table[:, :1], table[:, 2:]], dim=1),
    }
    others = {it: tensor for it, tensor in found.items() if it != name}
    return others | changed, ("the distillation token is a register here, for it has no head",)


def _known(found: Tensors, said: HfConfig, *, dino: bool) -> Fields:
    """What configuration and names say, in our words."""
    head = next((it for it in ("classifier", "cls_classifier") if f"{it}.bias" in found), None)
    registers = found.get("embeddings.register_tokens")
    return {
        "width": said.hidden_size,
        "depth": said.num_hidden_layers,
        "num_heads": said.num_attention_heads,
        "mlp_dim": said.intermediate_size or int(said.hidden_size * said.mlp_ratio),
        "patch_px": sides(said.patch_size)[0],
        "image_px": sides(said.image_size),
        "num_classes": first_axis(found, f"{head}.bias"),
        "pool": "cls",
        "gelu": _GELUS[said.hidden_act],
        "layer_norm_eps": said.layer_norm_eps,
        "layer_scale": said.layerscale_value if dino else None,
        "distillation_token": "embeddings.distillation_token" in found,
        "registers": registers.shape[1] if registers is not None and registers.ndim == 3 else 0,
        "hidden_head": "pooler.dense.weight" in found,
    }


def _pixels(preprocessor: Mapping[str, Any] | None) -> Fields:
    said = read_document(HfPreprocessor, preprocessor or {}, PREPROCESSOR)
    if said.image_mean is None or said.image_std is None:
        return {}
    return {"pixel_mean": said.image_mean, "pixel_std": said.image_std}


def _class_names(said: HfConfig) -> tuple[str, ...]:
    """Names of the classes, unless they are the numbered ones that stand where there are none."""
    names = said.class_names
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def rules(spec: ViTSpec, family: _Family) -> list[Rule]:
    """The table of a model, names without the backbone's prefix."""
    made = expand(_FRAME)
    if spec.distillation_token:
        made += expand((("embeddings.distillation_token", "distillation_token", ROW),))
    if spec.registers:
        made += expand((("embeddings.register_tokens", "registers", ROWS),))
    for index in range(spec.depth):
        made += expand(family.block, f"encoder.layer.{index}.", f"blocks.{index}.")
    made += expand(pairs(("pooler.dense", "hidden"))) if spec.hidden_head else []
    return made + (expand(_head_rows(spec, family)) if spec.num_classes else [])


def _head_rows(spec: ViTSpec, family: _Family) -> tuple[Row, ...]:
    if spec.distillation_token:
        return pairs(("cls_classifier", "head"), ("distillation_classifier", "distillation_head"))
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
    kind, model_class = kind_of(spec)
    family = _FAMILIES[kind]
    made = write_weights(weights, rules(spec, family), spec)
    prefix = family.prefix if "For" in model_class else ""
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.")
    named = {it if it.startswith(heads) else prefix + it: made[it] for it in made}
    if kind == "dinov2_with_registers":
        # Part of that class, used in pre-training alone.
        named[f"{prefix}embeddings.mask_token"] = torch.zeros(1, spec.width)
    documents = {
        CONFIG: config_of(spec, kind, model_class, class_names),
        PREPROCESSOR: preprocessor_of(spec),
    }
    return Written(named, notes, documents)
