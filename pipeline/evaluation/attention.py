"""What a model says of one image and where it looks, with the preprocessing of evaluation.

Axes: H W pixels, C channels, K classes, A heads, T tokens, R Q rows and columns of patches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.feed.augment import centre_box
from pipeline.data.images.prepare import Rejection, prepare
from pipeline.data.images.render import render
from pipeline.evaluation.figures import save
from pipeline.model.attention_maps import attention_maps
from pipeline.model.backbone import Backbone, normalise
from pipeline.model.vit import ViT
from schemas.data import ImageSpec
from schemas.errors import DataError
from schemas.model import ViTSpec
from schemas.objectives import Probabilities

Look = Literal["last", "rollout"]
_LONGEST_PX = 2**16
"""Images are not scaled down before they are cut."""
_SIDE_INCHES = 3.2
_TITLE_INCHES = 0.25
_BRIGHTEST = 0.99
"""Share of the patches below the top of the colour scale; one bright patch must not hide all."""
_STRENGTH = 0.8
"""Opacity of the overlay where attention is strongest."""


@dataclass(frozen=True)
class Seen:
    """An image as a model sees it, and what it makes of it."""

    pixels: UInt8[np.ndarray, "H W C"]
    probabilities: Float[np.ndarray, " K"] | None
    """None for a model without a head."""
    attention: Float[np.ndarray, "R Q"] | None
    """Share of each patch, sum 1; None for axial blocks, where no token sees the whole image,
    and for models that are no ViT."""


def look_at(
    model: Backbone, data: bytes, *, name: str, look: Look, probabilities: Probabilities
) -> Seen:
    """Show a model an image file: upright, resized and centre-cropped as evaluation does.

    Args:
        model: In evaluation mode, on the CPU.
        data: Bytes of an image file of any kind that `ingest` reads.
        name: What errors call the image.
        look: `last`: attention of the last block; `rollout`: followed through all blocks
            (Abnar & Zuidema 2020). Of the class token where there is one, else on average.
        probabilities: What makes them of the logits.

    Raises:
        DataError: If the bytes are no image; with the reason.
    """
    pixels = _as_seen(data, model.spec.image_px, name)
    pixels_BCHW = normalise(torch.from_numpy(pixels)[None], model.spec)
    shares = None
    with torch.no_grad():
        found = model(pixels_BCHW)[0]
        if isinstance(model, ViT) and not model.spec.axial:
            maps = [map_BATT[0] for map_BATT in attention_maps(model, pixels_BCHW)]
            shares = _shares(model.spec, maps, look)
    return Seen(
        pixels=pixels,
        probabilities=_shown(found, probabilities).numpy() if model.spec.num_classes else None,
        attention=shares,
    )


def _shown(logits_K: Tensor, probabilities: Probabilities) -> Tensor:
    return logits_K.sigmoid() if probabilities == "sigmoid" else logits_K.softmax(dim=0)


def _as_seen(data: bytes, image_px: tuple[int, int], name: str) -> UInt8[np.ndarray, "H W C"]:
    stored = prepare(data, ImageSpec(encoding="raw", max_side_px=_LONGEST_PX), hashes=False)
    if isinstance(stored, Rejection):
        raise DataError(f"{name} is refused ({stored.reason}): {stored.message}")
    pixels = np.empty((*image_px, 3), np.uint8)
    box = centre_box((stored.height_px, stored.width_px), image_px)
    render(stored.data, box, pixels)
    return pixels


def _shares(spec: ViTSpec, maps: list[Tensor], look: Look) -> Float[np.ndarray, "R Q"]:
    """How much of the attention each patch gets."""
    mixed_TT = _rollout(maps) if look == "rollout" else maps[-1].mean(dim=0)
    # Without a class token every token counts: what a patch gets on average is what pooling sees.
    given_T = mixed_TT[0] if spec.pool == "cls" else mixed_TT.mean(dim=0)
    patches_N = given_T[spec.leading :]
    shares: np.ndarray = (patches_N / patches_N.sum()).reshape(spec.grid).numpy()
    return shares


def _rollout(maps: list[Tensor]) -> Tensor:
    """Attention from the last tokens back to the first: heads averaged, residuals counted half."""
    tokens = maps[0].shape[-1]
    through_TT = torch.eye(tokens)
    for map_ATT in maps:
        step_TT = (map_ATT.mean(dim=0) + torch.eye(tokens)) / 2
        through_TT = step_TT @ through_TT
    return through_TT


def draw_overlay(path: Path, seen: Seen, *, title: str, caption: str) -> None:
    """The image beside the same image under its attention, as a PNG.

    Raises:
        ValueError: If there is no attention to draw.
    """
    if seen.attention is None:
        raise ValueError("there is no attention to draw")
    height, width, _ = seen.pixels.shape
    scale = _SIDE_INCHES / max(height, width)
    size = (2 * scale * width, scale * height + _TITLE_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    plain, covered = figure.subplots(1, 2)
    extent = (0, width, height, 0)
    plain.imshow(seen.pixels, extent=extent)
    # Grey, so that no colour of the photo is taken for attention.
    covered.imshow(seen.pixels.mean(axis=2), extent=extent, cmap="gray", vmin=0, vmax=255)
    for axes in (plain, covered):
        axes.set_axis_off()
    heat = np.clip(seen.attention / np.quantile(seen.attention, _BRIGHTEST), 0.0, 1.0)
    strength = _STRENGTH * np.sqrt(heat)
    covered.imshow(heat, extent=extent, cmap="inferno", alpha=strength, interpolation="bilinear")
    plain.set_title(title, fontsize=9, loc="left")
    covered.set_title(caption, fontsize=9, loc="left")
    save(figure, path)
