"""Turns stored bytes into the pixels that a model reads: decode, cut out a box, resize.

Cutting comes first, so that nothing outside the box shows and rows below it need no decoding. The
resampler is torch's for bytes: that of Pillow to within one level, in a quarter of the time.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images.codec import Box, Pixels
from pipeline.data.images.decode import decode_rows

# What `interpolate(antialias=True)` calls; only this form fills an array that is there already.
_resample = torch.ops.aten._upsample_bilinear2d_aa.out  # noqa: SLF001


def render(data: bytes, box: Box, out: Pixels, *, mirror: bool = False) -> None:
    """Decode stored bytes, cut out `box` and resize it into `out`, as `resize` does."""
    resize(decode_rows(data, box[3]), box, out, mirror=mirror)


def resize(pixels: Pixels, box: Box, out: Pixels, *, mirror: bool = False) -> None:
    """Cut `box` out of pixels_HWC and resize it bilinearly, antialiased when shrinking.

    Args:
        pixels: The image, or as many of its rows as the box needs.
        box: In whole pixels of the image.
        out: Is filled; its shape [H, W, C] says the size.
        mirror: Turn left and right.
    """
    left, top, right, bottom = box
    # Only what may be written becomes a tensor, so a view of stored bytes is copied.
    cut = np.require(pixels[top:bottom, left:right], requirements="W")
    fitted = _as_batch(cut)
    if cut.shape == out.shape and not mirror:
        out[:] = cut
    elif cut.shape != out.shape:
        fitted = _as_batch(np.empty_like(out) if mirror else out)
        _resample(_as_batch(cut), list(out.shape[:2]), False, out=fitted)  # noqa: FBT003
    if mirror:
        # NumPy would copy a mirrored image pixel by pixel; torch turns whole rows.
        _as_batch(out).copy_(fitted.flip(3))


def _as_batch(pixels: Pixels) -> Tensor:
    """[H, W, C] -> a batch of one in the axes that torch resizes, a view.

    NumPy turns the axes: each call of torch lets go of the interpreter, and threads queue for it.
    """
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])
