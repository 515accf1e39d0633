"""What a model says of one image and where it looks, with the preprocessing of evaluation.

Axes: H W pixels, C channels, K classes, R Q rows and columns of patches.
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
from pipeline.evaluation.interpret.looks import Reads
from pipeline.evaluation.interpret.looks import look as follow
from pipeline.evaluation.interpret.pictures import overlay
from pipeline.model.backbone import Backbone, normalise
from schemas.data import ImageSpec
from schemas.errors import DataError, SpecError
from schemas.objectives import Probabilities

Look = Literal["last", "rollout"]
_LONGEST_PX = 2**16
"""Images are not scaled down before they are cut."""
_SIDE_INCHES = 3.2
_TITLE_INCHES = 0.25


@dataclass(frozen=True)
class Seen:
    """An image as a model sees it, and what it makes of it."""

    pixels: UInt8[np.ndarray, "H W C"]
    probabilities: Float[np.ndarray, " K"] | None
    """None for a model without a head."""
    attention: Float[np.ndarray, "R Q"] | None
    """Share of each patch, sum 1; None where there is no attention over the whole image."""
    reads: Reads | None
    """Whose attention it is."""
    why_not: str
    """Why there is none; else empty."""


def look_at(
    model: Backbone, data: bytes, *, name: str, look: Look, probabilities: Probabilities
) -> Seen:
    """Show a model an image file: upright, resized and centre-cropped as evaluation does.

    Args:
        model: In evaluation mode, on the CPU.
        data: Bytes of an image file of any kind that `ingest` reads.
        name: What errors call the image.
        look: `last`: attention of the last block; `rollout`: followed through all blocks
            (Abnar & Zuidema 2020). Of what the model pools with.
        probabilities: What makes them of the logits.

    Raises:
        DataError: If the bytes are no image; with the reason.
    """
    pixels = _as_seen(data, model.spec.image_px, name)
    pixels_BCHW = normalise(torch.from_numpy(pixels)[None], model.spec)
    with torch.no_grad():
        found = model(pixels_BCHW)[0]
    shares, reads, why_not = None, None, ""
    try:
        looks = follow(model, pixels_BCHW)
    except SpecError as error:
        why_not = error.what
    else:
        reads = looks.reads
        shares = (looks.rollout_BRQ if look == "rollout" else looks.last_BRQ)[0].numpy()
    return Seen(
        pixels=pixels,
        probabilities=_shown(found, probabilities).numpy() if model.spec.num_classes else None,
        attention=shares,
        reads=reads,
        why_not=why_not,
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
    for axes in (plain, covered):
        axes.set_axis_off()
    overlay(covered, seen.pixels, seen.attention)
    plain.set_title(title, fontsize=9, loc="left")
    covered.set_title(caption, fontsize=9, loc="left")
    save(figure, path)
