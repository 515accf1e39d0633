"""Changes the colours and the shape of a picture: RandAugment's operations, colour jitter, erasing.

What maps each level to another is a table; the rest is Pillow's. Its own versions of the former
spend ten times as long on building lists in Python. All of it is deterministic for one version.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipeline.data.images.codec import Box, Pixels

_GREY = 128
_FULL = 10.0
"""Magnitude at which an operation has the full range of AutoAugment (Cubuk et al. 2018)."""
_TURN_DEGREES = 30.0
_SHEAR = 0.3
_MOVE_RATIO = 0.45
_FACTOR = 0.9
_LEVELS = np.arange(256)

Operation = tuple[str, float]
"""A name of `OPERATIONS`, and the strength: the magnitude, its sign drawn."""


def alter(pixels: Pixels, jitter: Sequence[float], operations: Sequence[Operation]) -> None:
    """Change pixels_HWC in place.

    Args:
        pixels: The picture.
        jitter: Factors of brightness, contrast and saturation and a turn of hue in circles, or
            nothing.
        operations: Follow one after the other.
    """
    changed = pixels
    if jitter:
        changed = _jittered(changed, jitter)
    for name, strength in operations:
        changed = OPERATIONS[name](changed, strength / _FULL)
    if changed is not pixels:
        np.copyto(pixels, changed)


def erase(pixels: Pixels, box: Box) -> None:
    """Make a rectangle of pixels_HWC grey, in place."""
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = _GREY


def _jittered(pixels: Pixels, jitter: Sequence[float]) -> Pixels:
    brightness, contrast, saturation, hue = jitter
    if brightness != 1:
        pixels = _brightened(pixels, brightness)
    if contrast != 1:
        pixels = _contrasted(pixels, contrast)
    if saturation != 1:
        pixels = _saturated(pixels, saturation)
    return _recoloured(pixels, round(hue * 256)) if hue else pixels


def _tabled(pixels: Pixels, table: NDArray[Any]) -> Pixels:
    """Every level replaced by that of a table: one for all channels, or a row for each."""
    levels = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    if levels.ndim == 1:
        return np.take(levels, pixels)
    return np.stack([levels[channel].take(pixels[..., channel]) for channel in range(3)], axis=-1)


def _brightened(pixels: Pixels, factor: float) -> Pixels:
    return _tabled(pixels, _LEVELS * factor)


def _contrasted(pixels: Pixels, factor: float) -> Pixels:
    grey = np.asarray(Image.fromarray(pixels).convert("L")).mean()
    return _tabled(pixels, grey + (_LEVELS - grey) * factor)


def _saturated(pixels: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(factor))


def _sharpened(pixels: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(factor))


def _recoloured(pixels: Pixels, turn: int) -> Pixels:
    """Hues turned by 1/256 of the circle, `turn` times."""
    hue, *others = Image.fromarray(pixels).convert("HSV").split()
    turned = Image.fromarray((np.asarray(hue, np.int64) + turn).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (turned, *others)).convert("RGB"))


def _histograms(pixels: Pixels) -> NDArray[np.int64]:
    """How often each level is in each channel, [3, 256]."""
    return np.array(Image.fromarray(pixels).histogram(), np.int64).reshape(3, 256)


def _stretched(pixels: Pixels, _strength: float) -> Pixels:
    """Each channel from 0 to 255; one of a single level stays."""
    counts = _histograms(pixels) > 0
    low, high = counts.argmax(axis=1)[:, None], 255 - counts[:, ::-1].argmax(axis=1)[:, None]
    stretched = (_LEVELS - low) * 255.0 / np.maximum(high - low, 1)
    return _tabled(pixels, np.where(high > low, stretched, _LEVELS))


def _equalized(pixels: Pixels, _strength: float) -> Pixels:
    """Each channel's levels spread evenly, as Pillow's `ImageOps.equalize` does."""
    counts = _histograms(pixels)
    last = np.take_along_axis(counts, 255 - (counts[:, ::-1] > 0).argmax(axis=1)[:, None], axis=1)
    step = (counts.sum(axis=1, keepdims=True) - last) // 255
    before = np.cumsum(counts, axis=1) - counts
    return _tabled(pixels, np.where(step, (step // 2 + before) // np.maximum(step, 1), _LEVELS))


def _posterized(pixels: Pixels, strength: float) -> Pixels:
    lost = min(7, int(4 * abs(strength)))
    return pixels & np.uint8(256 - (1 << lost))


def _solarized(pixels: Pixels, strength: float) -> Pixels:
    threshold = 256 - 256 * abs(strength)
    return _tabled(pixels, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _affine(pixels: Pixels, matrix: tuple[float, ...]) -> Pixels:
    """Output (x, y) shows input (a x + b y + c, d x + e y + f), both from the centre."""
    a, b, c, d, e, f = matrix
    image = Image.fromarray(pixels)
    x, y = image.width / 2, image.height / 2
    about_centre = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    moved = image.transform(
        image.size,
        Image.Transform.AFFINE,
        about_centre,
        resample=Image.Resampling.BILINEAR,
        fillcolor=(_GREY,) * 3,
    )
    return np.asarray(moved)


def _turned(pixels: Pixels, strength: float) -> Pixels:
    degrees, fill = _TURN_DEGREES * strength, (_GREY,) * 3
    image = Image.fromarray(pixels)
    return np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill))


def _factor(strength: float) -> float:
    return max(0.0, 1.0 + _FACTOR * strength)


OPERATIONS: dict[str, Callable[[Pixels, float], Pixels]] = {
    "identity": lambda pixels, _: pixels,
    "autocontrast": _stretched,
    "equalize": _equalized,
    "rotate": _turned,
    "solarize": _solarized,
    "posterize": _posterized,
    "colour": lambda pixels, strength: _saturated(pixels, _factor(strength)),
    "contrast": lambda pixels, strength: _contrasted(pixels, _factor(strength)),
    "brightness": lambda pixels, strength: _brightened(pixels, _factor(strength)),
    "sharpness": lambda pixels, strength: _sharpened(pixels, _factor(strength)),
    "shear_x": lambda pixels, strength: _affine(pixels, (1, _SHEAR * strength, 0, 0, 1, 0)),
    "shear_y": lambda pixels, strength: _affine(pixels, (1, 0, 0, _SHEAR * strength, 1, 0)),
    "move_x": lambda pixels, strength: _affine(
        pixels, (1, 0, _MOVE_RATIO * strength * pixels.shape[1], 0, 1, 0)
    ),
    "move_y": lambda pixels, strength: _affine(
        pixels, (1, 0, 0, 0, 1, _MOVE_RATIO * strength * pixels.shape[0])
    ),
}
"""The fourteen operations of RandAugment (Cubuk et al. 2019), by name."""
