"""Which model of Hugging Face is the same as one of ours, and the documents that go with it."""

from collections.abc import Iterator

from pipeline.model.interchange_names import Fields
from schemas.errors import SpecError
from schemas.model import ViTSpec


def kind_of(spec: ViTSpec) -> tuple[str, str]:
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


def config_of(spec: ViTSpec, kind: str, name: str, class_names: tuple[str, ...]) -> Fields:
    """Content of `config.json`."""
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


def preprocessor_of(spec: ViTSpec) -> Fields:
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
