"""Weights of one model made into the start of another: new head, other input size; strict."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.model.positions import resized_tables
from pipeline.model.vit import ViT
from schemas.errors import SpecError
from schemas.model import ModelChange, ViTSpec

_FREE = frozenset({*ModelChange.FREE_WITH_WEIGHTS, "num_classes", "hidden_head"})
_HEADS = ("head", "distillation_head", "hidden")


def adapt(weights: Mapping[str, Tensor], source: ViTSpec, target: ViTSpec) -> dict[str, Tensor]:
    """The start of `target`: weights of `source`, zero heads, positions resized to its grid.

    The hidden layer of a head is part of the head: it goes, as in the paper.

    Raises:
        SpecError: If the specs differ in more than input size, head and regularisation, or if
            `weights` lacks a parameter of `source`, holds another one, or one of another shape; all
            are listed.
    """
    _check_specs(source, target)
    check_weights(weights, source)
    adapted = {name: it for name, it in weights.items() if name.partition(".")[0] not in _HEADS}
    adapted |= resized_tables(weights, source, target)
    for name in heads(target):
        adapted[f"{name}.weight"] = torch.zeros(target.num_classes, target.width)
        adapted[f"{name}.bias"] = torch.zeros(target.num_classes)
    return adapted


def heads(spec: ViTSpec) -> tuple[str, ...]:
    """Names of the linear heads that `spec` has."""
    return _HEADS[: 1 + spec.distillation_token] if spec.num_classes else ()


def check_weights(weights: Mapping[str, Tensor], spec: ViTSpec) -> None:
    """Compare names and shapes with the parameters of the model of `spec`.

    Raises:
        SpecError: With every missing, unexpected and misshapen parameter.
    """
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in ViT(spec).named_parameters()}
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


def _check_specs(source: ViTSpec, target: ViTSpec) -> None:
    before, after = dict(source), dict(target)
    changed = [name for name in before if name not in _FREE and before[name] != after[name]]
    if target.hidden_head:
        changed.append("hidden_head")
    if changed:
        pairs = ", ".join(f"{name} {before[name]!r} -> {after[name]!r}" for name in changed)
        raise SpecError(
            f"weights cannot be carried over a change of {pairs}; "
            f"only {', '.join(sorted(_FREE))} may change"
        )
