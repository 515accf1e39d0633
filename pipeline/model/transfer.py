"""Weights of one model made into the start of another: new head, other input size; strict.

"Weights" are all of a model's state by name: parameters and, where a model has some, buffers.
"""

from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.model.building import state_of, unfilled
from pipeline.model.positions import resized_tables
from schemas.backbones import BackboneSpec
from schemas.errors import SpecError
from schemas.model import ModelChange, ViTSpec

_HEADS = ("head", "distillation_head", "hidden")


def adapt(
    weights: Mapping[str, Tensor], source: BackboneSpec, target: BackboneSpec
) -> dict[str, Tensor]:
    """The start of `target`: weights of `source`, zero heads, positions resized to its grid.

    The hidden layer of a head is part of the head: it goes, as in the paper.

    Raises:
        SpecError: If the specs differ in more than input size, head and regularisation; if
            `weights` lacks a parameter of `source`, holds another one, or one of another shape, all
            of which are listed; or if a library's model has weights that depend on the input size.
    """
    _check_specs(source, target)
    check_weights(weights, source)
    adapted = {name: it for name, it in weights.items() if not is_head(name)}
    if isinstance(source, ViTSpec) and isinstance(target, ViTSpec):
        adapted |= resized_tables(weights, source, target)
        for name in heads(target):
            adapted[f"{name}.weight"] = torch.zeros(target.num_classes, target.width)
            adapted[f"{name}.bias"] = torch.zeros(target.num_classes)
        return adapted
    wanted = state_of(unfilled(target))
    adapted |= {name: torch.zeros(it.shape) for name, it in wanted.items() if is_head(name)}
    _check_size(adapted, wanted, target)
    return adapted


def at_size(
    weights: Mapping[str, Tensor], source: BackboneSpec, image_px: tuple[int, int]
) -> tuple[dict[str, Tensor], BackboneSpec]:
    """The same model, head included, for images of another height and width.

    Raises:
        SpecError: If a model of this kind cannot take that size.
    """
    try:
        target: BackboneSpec = source.revise(image_px=image_px)
    except ValueError as error:
        raise SpecError(
            f"this model cannot take images of {image_px[0]} x {image_px[1]} px: {_reason(error)}"
        ) from error
    if isinstance(source, ViTSpec) and isinstance(target, ViTSpec):
        return {**weights, **resized_tables(weights, source, target)}, target
    _check_size(weights, state_of(unfilled(target)), target)
    return dict(weights), target


def _reason(error: ValueError) -> str:
    """What a rule of a spec says, without pydantic's frame."""
    if isinstance(error, ValidationError):
        return "; ".join(it["msg"].removeprefix("Value error, ") for it in error.errors())
    return str(error)


def heads(spec: ViTSpec) -> tuple[str, ...]:
    """Names of the linear heads that `spec` has."""
    return _HEADS[: 1 + spec.distillation_token] if spec.num_classes else ()


def check_weights(weights: Mapping[str, Tensor], spec: BackboneSpec) -> None:
    """Compare names and shapes with the state of the model of `spec`.

    Raises:
        SpecError: With every missing, unexpected and misshapen parameter.
    """
    check_against(weights, state_of(unfilled(spec)))


def check_against(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of a model's state.

    Raises:
        SpecError: With every missing, unexpected and misshapen parameter.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = sorted(shapes.keys() - weights.keys())
    unexpected = sorted(weights.keys() - shapes.keys())
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
    if found:
        raise SpecError(
            f"the weights are not those of this model ({found})",
            hint="take weights and model.json from one artifact",
        )


def is_head(name: str) -> bool:
    """Whether a parameter belongs to what a transfer makes anew."""
    return name.partition(".")[0] in _HEADS


def _check_size(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], target: BackboneSpec
) -> None:
    """What a library's model has at another input size must be what it had."""
    other = [name for name, it in weights.items() if it.shape != wanted[name].shape]
    if other:
        raise SpecError(
            f"at image_px {list(target.image_px)} this {target.type} model has other shapes of "
            f"{', '.join(other)}; leave image_px as the weights have it"
        )


def _check_specs(source: BackboneSpec, target: BackboneSpec) -> None:
    if source.type != target.type:
        raise SpecError(
            f"weights of a {source.type} model cannot be carried over to a {target.type} model"
        )
    free = {"num_classes", "hidden_head", *_free_fields(source)}
    before, after = dict(source), dict(target)
    changed = [name for name in before if name not in free and before[name] != after[name]]
    if isinstance(target, ViTSpec) and target.hidden_head:
        changed.append("hidden_head")
    if changed:
        pairs = ", ".join(f"{name} {before[name]!r} -> {after[name]!r}" for name in changed)
        raise SpecError(
            f"weights cannot be carried over a change of {pairs}; "
            f"only {', '.join(sorted(free))} may change"
        )


def _free_fields(spec: BackboneSpec) -> tuple[str, ...]:
    if isinstance(spec, ViTSpec):
        return ModelChange.FREE_WITH_WEIGHTS
    return spec.FREE_WITH_WEIGHTS
