"""Turns stored bytes into the pixels that a model reads."""

import numpy as np
from PIL import Image

from pipeline.data.images.codec import Box, Pixels, open_image


def decode(data: bytes) -> Pixels:
    """Stored bytes -> pixels_HWC."""
    with open_image(data) as image:
        return np.asarray(_coloured(image))


def render(data: bytes, box: Box, size_hw: tuple[int, int]) -> Pixels:
    """Decode, cut out `box` and resize it to `size_hw`, as `resize` does -> pixels_HWC."""
    with open_image(data) as image:
        return _resized(_coloured(image), box, size_hw)


def resize(pixels: Pixels, box: Box, size_hw: tuple[int, int]) -> Pixels:
    """Cut `box` out of pixels_HWC and resize it bilinearly, antialiased when shrinking."""
    return _resized(Image.fromarray(pixels), box, size_hw)


def _coloured(image: Image.Image) -> Image.Image:
    image.load()
    # Converting to the mode that an image has would only copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, box: Box, size_hw: tuple[int, int]) -> Pixels:
    height, width = size_hw
    fitted = image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    return np.asarray(fitted)
