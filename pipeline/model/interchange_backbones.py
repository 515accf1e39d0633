"""Folders of timm and `transformers` whose model is taken as the library builds it.

For ViTs there are better ways in: the layouts `timm` and `hf`, which need no library afterwards.
Nothing is fetched and no code of a folder is run. The library loads its own names; a head is kept
only where ours, with its weights, gives the same logits.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.model.backbones import (
    OURS_OF_HF,
    hf_config,
    in_words,
    stated,
    timm_model,
    transformers,
)
from pipeline.model.building import build, state_of
from pipeline.model.interchange_names import Read, Tensors
from schemas.backbones import HFSpec, TimmSpec
from schemas.errors import SpecError
from schemas.interchange import Assumptions

TOLERANCE = 1e-4
"""Largest difference between a logit of the library's head and of ours, as a share of the largest
one."""
_CAN_BE_SAID = ("image_px", "pixel_mean", "pixel_std")
_FOLLOW = frozenset(
    {
        *("architectures", "transformers_version", "_name_or_path", "model_type", "problem_type"),
        *("stage_names", "out_features", "out_indices", "use_cache"),
    }
)
"""Fields of a configuration that say nothing of the model, or follow from others."""


class _Head(NamedTuple):
    """The library's own: a linear layer, and the logits of the whole model."""

    layer: nn.Linear
    logits: Callable[[Tensor], Tensor]
    class_names: tuple[str, ...]


def read_hf(
    folder: Path, config: Mapping[str, Any], shown: Mapping[str, Any] | None, assume: Assumptions
) -> Read:
    """The model of a folder of `transformers`.

    Args:
        folder: With `config.json` and safetensors.
        config: What `config.json` says.
        shown: What `preprocessor_config.json` says; None where there is none.
        assume: The input size and how pixels are normalised, where the folder does not say.

    Raises:
        SpecError: If the library has no such model of images, or its weights are not whole.
    """
    library = transformers()
    fields, assumed = _seen(config.get("image_size"), _normalisation(shown or {}), assume)
    spec = _hf_spec(config, fields)
    body, said = _loaded(library.AutoModel, folder, spec)
    foreign = [name for name in said["unexpected_keys"] if "classifier" not in name]
    if said["missing_keys"] or foreign:
        raise _not_whole(spec, said["missing_keys"], foreign)
    kinds = [str(name) for name in config.get("architectures") or ()]
    is_headed = any(name.endswith("ForImageClassification") for name in kinds)
    head = _hf_head(library, folder, spec, config) if is_headed else None
    return _read(spec, body.state_dict(), head, assumed, said["unexpected_keys"])


def read_timm(tensors: Tensors, config: Mapping[str, Any], assume: Assumptions) -> Read:
    """The model of a folder of timm.

    Args:
        tensors: Its weights by timm's names.
        config: What `config.json` says.
        assume: The input size and how pixels are normalised, where the folder does not say.

    Raises:
        SpecError: If the library has no such model, or the weights are not its.
    """
    said = config.get("pretrained_cfg") or {}
    size = said.get("input_size")
    pixels = {"pixel_mean": said.get("mean"), "pixel_std": said.get("std")}
    fields, assumed = _seen(size and size[1:], pixels, assume)
    given = {"name": config.get("architecture"), "options": config.get("model_args") or {}}
    spec = _checked(TimmSpec, {**fields, **given, "num_classes": 0})
    classes = config.get("num_classes", said.get("num_classes", 0))
    whole = stated(spec, lambda: timm_model(spec, num_classes=classes)).eval()
    expected = whole.state_dict()
    if expected.keys() != tensors.keys():
        raise _not_whole(spec, expected.keys() - tensors.keys(), tensors.keys() - expected.keys())
    stated(spec, lambda: whole.load_state_dict(tensors))
    layer: Any = whole.get_classifier() if classes else None  # type: ignore[operator]  # timm's
    bare = stated(spec, lambda: timm_model(spec, num_classes=0)).state_dict()
    body = {name: tensor for name, tensor in whole.state_dict().items() if name in bare}
    names = tuple(str(name) for name in config.get("label_names") or ())
    head = _Head(layer, whole, names) if isinstance(layer, nn.Linear) else None
    return _read(spec, body, head, assumed, expected.keys() - bare.keys())


def _read(
    spec: TimmSpec | HFSpec,
    body: Mapping[str, Tensor],
    head: _Head | None,
    assumed: tuple[str, ...],
    outside: Collection[str],
) -> Read:
    """Put together; `outside` are the names of what the body has not."""
    if head is not None:
        whole = spec.revise(num_classes=head.layer.out_features)
        weights = {f"body.{name}": tensor for name, tensor in body.items()}
        weights["head.weight"] = head.layer.weight.detach()
        bias = head.layer.bias
        weights["head.bias"] = torch.zeros(whole.num_classes) if bias is None else bias.detach()
        if _answers_alike(whole, weights, head):
            return Read(whole, weights, head.class_names, assumed)
    bare = build(spec, seed=0)
    bare.get_submodule("body").load_state_dict(body)
    notes = (
        ("the head works on something else than the pooled features, so it was left out",)
        if head
        else ()
    )
    return Read(spec, state_of(bare), (), assumed, tuple(sorted(outside)), notes)


def _answers_alike(spec: TimmSpec | HFSpec, weights: Mapping[str, Tensor], head: _Head) -> bool:
    """Whether our linear head on pooled features is what the library computes."""
    model = build(spec, seed=0)
    if model.get_parameter("head.weight").shape != weights["head.weight"].shape:
        return False
    model.load_state_dict(dict(weights))
    pixels = torch.rand(2, 3, *spec.image_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.eval()(pixels), head.logits(pixels)
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max())


def _hf_spec(config: Mapping[str, Any], fields: Mapping[str, Any]) -> HFSpec:
    """The specification whose configuration is the folder's."""
    start = _checked(HFSpec, {**fields, "model_type": config.get("model_type"), "num_classes": 0})
    usual = hf_config(start).to_dict()
    theirs = stated(start, lambda: type(hf_config(start))(**config).to_dict())
    free = usual.keys() - OURS_OF_HF.keys() - _FOLLOW
    options = {name: theirs[name] for name in sorted(free) if theirs[name] != usual[name]}
    rate = theirs.get("drop_path_rate", 0.0)
    spec: HFSpec = _checked(HFSpec, {**start.dump(), "options": options, "drop_path": rate})
    found = hf_config(spec).to_dict()
    other = [name for name in free if found[name] != theirs[name]]
    if other:
        raise SpecError(f"{in_words(spec)} does not take over {', '.join(sorted(other))}")
    return spec


def _hf_head(library: Any, folder: Path, spec: HFSpec, config: Mapping[str, Any]) -> _Head | None:
    whole, _ = _loaded(library.AutoModelForImageClassification, folder, spec)
    inside = f"{whole.base_model_prefix}."
    layers = [
        module
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(inside)
    ]
    names = config.get("id2label") or {}
    in_order = tuple(str(names[str(it)]) for it in range(len(names)) if str(it) in names)
    if len(layers) != 1:
        return None
    return _Head(layers[0], lambda pixels: whole(pixel_values=pixels).logits, in_order)


def _loaded(kind: Any, folder: Path, spec: HFSpec) -> tuple[Any, Mapping[str, Any]]:
    """A model with the folder's weights in evaluation mode, and what did not fit."""
    model, said = stated(
        spec,
        lambda: kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        ),
    )
    return model.eval(), said


def _seen(
    size: Any, pixels: Mapping[str, Any], assume: Assumptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Input size and normalisation, and which of them nobody said."""
    given = assume.given()
    useless = sorted(given.keys() - set(_CAN_BE_SAID))
    if useless:
        raise SpecError(
            f"{useless[0]} cannot be assumed of a library's model; only {', '.join(_CAN_BE_SAID)}"
        )
    sides = [size, size] if isinstance(size, int) else size
    found = {"image_px": sides, **pixels} | given
    if not found["image_px"]:
        raise SpecError("the folder does not say the input size", hint="--set image_px=224")
    known = {name: value for name, value in found.items() if value is not None}
    unsaid = [name for name in _CAN_BE_SAID if name not in known]
    defaults = {name: HFSpec.model_fields[name].default for name in unsaid}
    return known, tuple(f"{name} {list(value)}" for name, value in defaults.items())


def _normalisation(shown: Mapping[str, Any]) -> dict[str, Any]:
    return {"pixel_mean": shown.get("image_mean"), "pixel_std": shown.get("image_std")}


def _checked(kind: Any, fields: Mapping[str, Any]) -> Any:
    """The specification, or a sentence about what a folder says that is none."""
    try:
        return kind.parse(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][:2])
        raise SpecError(f"the folder says something of {field} that is not known here") from error


def _not_whole(
    spec: TimmSpec | HFSpec, missing: Collection[str], unexpected: Collection[str]
) -> SpecError:
    faults = {"missing": sorted(missing), "unexpected": sorted(unexpected)}
    found = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
    return SpecError(f"the weights are not those of {in_words(spec)} ({found})")
