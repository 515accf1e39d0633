"""Where a model looks: the weights of its attention, one layer after the other.

B batch, A heads, T tokens, M tokens that ask, S sequences.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.attention import Attention
from pipeline.model.backbone import Backbone
from pipeline.model.backbones import ForeignBackbone, HFBackbone, TimmBackbone, in_words
from pipeline.model.pooling import AttentionPooling
from pipeline.model.vit import ViT
from schemas.errors import SpecError


class Places(NamedTuple):
    """Where the tokens of a sequence belong: leading ones first, then a grid in reading order."""

    leading: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Tokens that have a place in the image."""
        return self.rows * self.columns


class Attended(NamedTuple):
    """One attention of a network over a batch."""

    layer: str
    """Such as `block 3`, `block 3, rows` or `pooling`."""
    places: Places
    weights_SAMT: Tensor
    """What token m takes from token t; rows sum to 1. S is the batch, or for an axial block the
    rows or columns of all its images; M is T, or 1 where the query of a pooling asks."""
    whole: bool
    """Whether a sequence is a whole image."""


See = Callable[[Attended], None]
POOLING = "pooling"
"""Name of the attention with which a model pools, always the last."""


@torch.no_grad()
def each_attention(model: Backbone, pixels_BCHW: Tensor, see: See) -> None:
    """Show `see` every attention of the network, from the first; one is in memory at a time.

    Ours are computed a second time, with an explicit softmax. Those of timm are asked to compute
    them, instead of a fused kernel that keeps none, and those of `transformers` likewise.

    Raises:
        SpecError: If the model has no attention, or none over the image that could be had.
    """
    if isinstance(model, ViT):
        watching = _watching_vit(model, see)
    elif isinstance(model, TimmBackbone):
        watching = _watching_timm(model, len(pixels_BCHW), see)
    elif isinstance(model, HFBackbone):
        watching = _watching_hf(model, len(pixels_BCHW), see)
    else:
        raise SpecError(f"a model of type {model.spec.type} has no attention")
    with watching:
        model.forward_features(pixels_BCHW)


def rows_read(model: Backbone, places: Places) -> slice:
    """Rows of the last attention that count: those of class tokens, or else of all patches."""
    if isinstance(model, ViT):
        classes = int(model.spec.pool == "cls") + int(model.spec.distillation_token)
    elif isinstance(model, TimmBackbone):
        classes = int(getattr(model.body, "cls_token", None) is not None)
    else:
        classes = int(places.leading > 0)
    return slice(0, classes) if classes else slice(places.leading, None)


@contextmanager
def _watching_vit(model: ViT, see: See) -> Iterator[None]:
    spec = model.spec
    rows, columns = spec.grid
    whole = Places(spec.leading, rows, columns)
    with ExitStack() as hooks:
        for number, block in enumerate(model.blocks, start=1):
            assert isinstance(block, nn.Module)  # noqa: S101 - a ModuleList holds no other
            if spec.axial:
                for part, line in (("rows", columns), ("columns", rows)):
                    places = Places(0, 1, line) if part == "rows" else Places(0, line, 1)
                    look = _weights_seen(f"block {number}, {part}", places, see, whole=False)
                    attention = block.get_submodule(f"{part}.attention")
                    hooks.enter_context(attention.register_forward_pre_hook(look))
            else:
                look = _weights_seen(f"block {number}", whole, see, whole=True)
                attention = block.get_submodule("attention")
                hooks.enter_context(attention.register_forward_pre_hook(look))
        if model.pooling is not None:
            look = _pooling_seen(whole, see)
            hooks.enter_context(model.pooling.register_forward_pre_hook(look))
        yield


Hook = Callable[[nn.Module, tuple[Any, ...]], None]


def _weights_seen(layer: str, places: Places, see: See, *, whole: bool) -> Hook:
    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)  # noqa: S101 - blocks hold no other
        see(Attended(layer, places, module.weights(arguments[0]), whole))

    return look


def _pooling_seen(places: Places, see: See) -> Hook:
    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, AttentionPooling)  # noqa: S101 - it was hung there
        tokens_BTD = arguments[0]
        weights = module.attention.weights(tokens_BTD, module.asking(tokens_BTD))
        see(Attended(POOLING, places, weights, whole=True))

    return look


class _Foreign:
    """Takes what a library's attention computes, if it is over the tokens of the last grid."""

    def __init__(self, model: ForeignBackbone, samples: int, see: See) -> None:
        self._model, self._samples, self._see = model, samples, see
        self.count = 0

    def take(self, weights: Tensor) -> None:
        places = self._places(weights.shape[-1])
        tokens = None if places is None else places.leading + places.patches
        whole = weights.ndim == 4 and weights.shape[2:] == (tokens, tokens)
        if places is None or not whole or len(weights) != self._samples:
            words = in_words(self._model.spec)
            raise SpecError(f"attention of {words} is not over the whole image")
        self.count += 1
        self._see(Attended(f"block {self.count}", places, weights, whole=True))

    def _places(self, tokens: int) -> Places | None:
        try:
            return Places(*self._model.places(tokens))
        except ValueError:
            return None

    def check(self) -> None:
        if not self.count:
            raise SpecError(f"{in_words(self._model.spec)} shows no weights of any attention")


@contextmanager
def _watching_timm(model: TimmBackbone, samples: int, see: See) -> Iterator[None]:
    """What comes to the dropout of each attention, which the fused kernel passes by."""
    found = _Foreign(model, samples, see)
    parts: list[Any] = [
        module
        for module in model.body.modules()
        if isinstance(getattr(module, "fused_attn", None), bool)
        and isinstance(getattr(module, "attn_drop", None), nn.Module)
    ]
    before = [part.fused_attn for part in parts]

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.take(arguments[0])

    with ExitStack() as hooks:
        for part in parts:
            part.fused_attn = False
            hooks.enter_context(part.attn_drop.register_forward_pre_hook(look))
        try:
            yield
        finally:
            for part, fused in zip(parts, before, strict=True):
                part.fused_attn = fused
    found.check()


@contextmanager
def _watching_hf(model: HFBackbone, samples: int, see: See) -> Iterator[None]:
    """The second output of each attention, which those around it may hand on."""
    found = _Foreign(model, samples, see)
    body: Any = model.body
    before = body.config._attn_implementation  # noqa: SLF001 - there is no other name for it
    last: list[Tensor] = []

    def look(_: nn.Module, __: tuple[Any, ...], out: object) -> None:
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if isinstance(weights, Tensor) and not any(weights is it for it in last):
            last[:] = [weights]
            found.take(weights)

    with ExitStack() as hooks:
        body.set_attn_implementation("eager")
        for name, module in body.named_modules():
            if "attention" in name.rpartition(".")[2].lower():
                hooks.enter_context(module.register_forward_hook(look))
        try:
            yield
        finally:
            body.set_attn_implementation(before)
    found.check()
