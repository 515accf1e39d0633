"""Parts of a model that keep their weights while the rest learns."""

import difflib

from torch import nn

from pipeline.model.backbone import Backbone, batch_statistics
from schemas.errors import SpecError
from schemas.tuning import FreezeSpec


def freeze(model: Backbone, spec: FreezeSpec) -> None:
    """Let nothing but what `spec` leaves free learn: the other parameters take no gradient.

    Raises:
        SpecError: If nothing would learn, if a part is not in the model, or if the layers of a
            library's model are not known.
    """
    learns = _below(model, spec.learning_parts) if spec.all_but else _above(model, spec.up_to_layer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learns)


def _above(model: Backbone, layer: int | None) -> set[str]:
    """Parameters of the layers above `layer`."""
    assert layer is not None, "the spec sees to it"  # noqa: S101
    numbers = model.layers()
    top = max(numbers.values())
    if layer >= top:
        raise SpecError(
            f"freeze.up_to_layer {layer} leaves nothing to learn: the layers of this model are 0 "
            f"to {top}, and {top} is the head's; give at most {top - 1}"
        )
    return {name for name, number in numbers.items() if number > layer}


def _below(model: Backbone, parts: tuple[str, ...]) -> set[str]:
    """Parameters that are, or are inside of, what `parts` name."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for part in parts:
        inside = {name for name in names if name == part or name.startswith(f"{part}.")}
        if not inside:
            known = [name for name, _ in model.named_modules() if name] + names
            raise SpecError(
                f"freeze.all_but names {part}, which is no part of this model with weights",
                hint=did_you_mean(part, known),
            )
        found |= inside
    return found


def did_you_mean(word: str, known: list[str]) -> str:
    """What may have been meant, or all of a few that can be."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known[:20])}"


def to_training(model: nn.Module) -> None:
    """Set training mode, but for BatchNorm layers that are frozen: their statistics stay."""
    model.train()
    for name in batch_statistics(model):
        layer = model.get_submodule(name)
        if is_frozen(layer):
            layer.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them learns."""
    learn = [parameter.requires_grad for parameter in module.parameters()]
    return bool(learn) and not any(learn)


def learned(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
