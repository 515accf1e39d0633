"""Blocks of any model, and passes in which a part of what one of them is given is zero.

Axes: B batch, H W pixels, C channels.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from pipeline.evaluation.robustness.draws import generator
from pipeline.model.backbone import Backbone

_BLOCK = re.compile(r"^(.*\.)?((blocks|stages|layers|layer)\.\d+|layer\d+)$")
"""How our models and both libraries name the parts that follow one another."""


def blocks_of(model: Backbone) -> dict[str, nn.Module]:
    """Blocks of a ViT, or stages of a CNN, by name and in the order in which they run.

    They are the outermost modules that are named as blocks are. A stage that is never called itself
    is stood for by its first unit. Empty, where a model has none that are known.
    """
    named = [(name, it) for name, it in model.named_modules() if _BLOCK.match(name)]
    depth = min((name.count(".") for name, _ in named), default=0)
    outermost = {name: it for name, it in named if name.count(".") == depth}
    candidates = {
        f"{name}{suffix}": part
        for name, block in outermost.items()
        for suffix, part in {"": block, ".0": next(block.children(), block)}.items()
    }
    ran = _order_of_running(model, candidates)
    whole = [name for name in ran if name in outermost]
    return {name: candidates[name] for name in (whole or ran)}


def _order_of_running(model: Backbone, candidates: Mapping[str, nn.Module]) -> list[str]:
    """Those that are given exactly one tensor, once, when the model sees a black image."""
    given: list[str] = []
    hooks = []
    for name, module in candidates.items():

        def note(
            _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], name: str = name
        ) -> None:
            if _first_tensor(arguments, named) is not None:
                given.append(name)

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        device = next(model.parameters()).device
        with torch.no_grad():
            model.forward_features(torch.zeros(1, 3, *model.spec.image_px, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in dict.fromkeys(given) if given.count(name) == 1]


@contextmanager
def lesion(
    module: nn.Module,
    percent: int,
    *,
    purpose: str,
    seed: int,
    uid_B: UInt8[np.ndarray, "B 16"],
) -> Iterator[None]:
    """Within the `with` block `percent` of the numbers that the module gets of an image are zero.

    Of n numbers exactly `percent * n // 100`, chosen for each image by its uid; the order in which
    they would go is the same for every `percent`. Nothing is scaled up in return.
    """

    def cut(
        _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        place = _first_tensor(arguments, named)
        assert place is not None  # noqa: S101 - `blocks_of` leaves such modules out
        values = arguments[place] if isinstance(place, int) else named[place]
        kept = values * _kept(values, percent, purpose=purpose, seed=seed, uid_B=uid_B)
        if isinstance(place, int):
            return (*arguments[:place], kept, *arguments[place + 1 :]), named
        return arguments, named | {place: kept}

    hook = module.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _kept(values: Tensor, percent: int, *, purpose: str, seed: int, uid_B: np.ndarray) -> Tensor:
    """1 where a number stays, 0 where not; of the shape of `values`."""
    numbers = values[0].numel()
    gone = percent * numbers // 100
    kept = np.ones((len(uid_B), numbers), np.float32)
    for row, uid in zip(kept, uid_B, strict=True):
        drawn = generator(purpose, seed, uid.tobytes()).random(numbers)
        row[np.argpartition(drawn, gone)[:gone]] = 0.0
    return torch.from_numpy(kept).to(values.device, values.dtype).view(values.shape)


def _first_tensor(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> int | str | None:
    """Where the first tensor among the arguments stands."""
    places: list[tuple[int | str, Any]] = [*enumerate(arguments), *named.items()]
    return next((place for place, value in places if isinstance(value, Tensor)), None)
