"""What can be read off any model: its first kernels, its positions, what each layer makes.

B batch, C channels, H W pixels of a kernel or cells of a grid, N patches, T tokens, D width.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.backbones import HFBackbone, TimmBackbone, in_words
from pipeline.model.resnet import ResNet
from pipeline.model.stem import standardise
from pipeline.model.vit import ViT
from schemas.errors import SpecError
from schemas.model import CHANNELS


class Kernels(NamedTuple):
    """What a model makes of pixels first."""

    weights_DCHW: Tensor
    is_patch: bool
    """Whether they cut the image into patches, or slide over it."""


class PositionTable(NamedTuple):
    """What a model adds to its patches, so that each says where it is."""

    table_ND: Tensor
    grid: tuple[int, int]
    """Rows and columns; the table is in reading order."""


def first_kernels(model: Backbone) -> Kernels:
    """The kernels that see pixels, as they are applied: standardised where the model does so.

    Raises:
        SpecError: If the model of a library begins with no convolution over colours.
    """
    if isinstance(model, ViT) and model.stem is None:
        side = model.spec.patch_px
        return Kernels(model.patch.weight.view(-1, CHANNELS, side, side), is_patch=True)
    if isinstance(model, ViT) and model.stem is not None:
        return Kernels(standardise(model.stem.root.weight, model.stem.root.spec), is_patch=False)
    if isinstance(model, ResNet):
        return Kernels(standardise(model.root.weight, model.spec), is_patch=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == CHANNELS:
            return Kernels(module.weight, is_patch=module.stride == module.kernel_size)
    raise SpecError(f"{_words(model)} begins with no convolution over the colours of pixels")


def position_table(model: Backbone) -> PositionTable:
    """The positions of the patches; where every layer has its own, those of the first.

    Raises:
        SpecError: If the model adds no positions, or it is not known where a library keeps them.
    """
    if isinstance(model, ViT):
        position_ND = model.positions(0)
        if position_ND is None:
            raise SpecError(
                "relative positions are keys of distances: no patch has a position of its own"
                if model.spec.position == "relative"
                else "the model has no positions"
            )
        return PositionTable(position_ND[model.spec.slots :], model.spec.grid)
    if isinstance(model, TimmBackbone | HFBackbone):
        return _foreign_table(model)
    raise SpecError(f"{_words(model)} adds no positions")


def _foreign_table(model: TimmBackbone | HFBackbone) -> PositionTable:
    named = [
        tensor for name, tensor in model.named_parameters() if _POSITIONS.search(name) is not None
    ]
    if len(named) != 1 or named[0].ndim != 3 or len(named[0]) != 1:
        raise SpecError(f"{_words(model)} has no table of learned positions that is known")
    rows_TD = named[0][0]
    try:
        _, rows, columns = model.places(len(rows_TD))
    except ValueError as error:
        raise SpecError(f"it is not known where the patches of {_words(model)} belong") from error
    if len(rows_TD) < rows * columns:
        raise SpecError(f"{_words(model)} resizes its positions while it runs")
    return PositionTable(rows_TD[-rows * columns :], (rows, columns))


_POSITIONS = re.compile(r"(?:^|\.)(?:pos_embed|position_embeddings)$")


@torch.no_grad()
def pooled_layers(model: Backbone, pixels_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What each layer makes of each image, averaged over its patches or cells, and the features.

    Layers are the blocks of a ViT, the units of a ResNet, and what a library calls its layers.

    Returns:
        Name of the layer -> [B, D], in the order of the network; then the features, [B, D].

    Raises:
        SpecError: If a library does not say what its layers are.
    """
    found: dict[str, Tensor] = {}
    with _watching(model, found):
        features_BD = model.forward_features(pixels_BCHW)
    return found, features_BD


def _watching(model: Backbone, found: dict[str, Tensor]) -> Any:
    if isinstance(model, HFBackbone):
        return _watching_hf(model, found)
    return _watching_modules(model, found)


@contextmanager
def _watching_modules(model: Backbone, found: dict[str, Tensor]) -> Iterator[None]:
    leading, channels_last = _layout(model)

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            found[name] = _mean(out, leading, channels_last=channels_last)

        return hook

    with ExitStack() as hooks:
        for name, module in _layers(model):
            hooks.enter_context(module.register_forward_hook(keep(name)))
        yield


def _layers(model: Backbone) -> list[tuple[str, nn.Module]]:
    """Layers and their names."""
    if isinstance(model, ViT):
        return [(f"block {number}", it) for number, it in enumerate(model.blocks, start=1)]
    if isinstance(model, ResNet):
        return [
            (f"stage {stage}, unit {unit}", module)
            for stage, units in enumerate(model.stages, start=1)
            for unit, module in enumerate(units.children(), start=1)
        ]
    body: Any = getattr(model, "body", None)
    modules = dict(body.named_modules())
    told = [info["module"] for info in getattr(body, "feature_info", None) or ()]
    layers = [(name, modules[name]) for name in told if name in modules]
    if not layers:
        raise SpecError(f"timm does not say what the layers of {_words(model)} are")
    return layers


def _layout(model: Backbone) -> tuple[int, bool]:
    """Tokens before the patches, and whether channels come last in a grid."""
    if isinstance(model, ViT):
        return model.spec.leading, False
    body: Any = getattr(model, "body", None)
    return getattr(body, "num_prefix_tokens", 0), getattr(body, "output_fmt", None) == "NHWC"


@contextmanager
def _watching_hf(model: HFBackbone, found: dict[str, Tensor]) -> Iterator[None]:
    """The hidden states that the library gives when asked for; the first is the embedding."""
    body: Any = model.body
    before = body.config.output_hidden_states

    def hook(_: nn.Module, __: Any, out: Any) -> None:
        states = getattr(out, "hidden_states", None) or ()
        last = out.last_hidden_state
        leading = model.places(last.shape[1])[0] if last.ndim == 3 else 0
        for number, state in enumerate(states):
            name = f"layer {number}" if number else "embedding"
            same = state.ndim == 3 and state.shape[1] == last.shape[1]
            found[name] = _mean(state, leading if same else 0, channels_last=False)

    body.config.output_hidden_states = True
    handle = body.register_forward_hook(hook)
    try:
        yield
    except ValueError as error:
        raise SpecError(f"it is not known where the tokens of {_words(model)} belong") from error
    finally:
        handle.remove()
        body.config.output_hidden_states = before
    if len(found) < 2:
        raise SpecError(f"{_words(model)} shows nothing of its layers")


def _mean(out: Tensor, leading: int, *, channels_last: bool) -> Tensor:
    """Tokens or a grid -> the mean over patches or cells, [B, D]."""
    if out.ndim == 3:
        return out[:, leading:].mean(dim=1)
    return out.mean(dim=(1, 2) if channels_last else (2, 3))


def _words(model: Backbone) -> str:
    if isinstance(model, TimmBackbone | HFBackbone):
        return in_words(model.spec)
    return f"a model of type {model.spec.type}"
