"""Thumbnails and perceptual hashes: what a near-duplicate search compares."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images.codec import Pixels
from schemas.records import THUMBNAIL_PX

_HASH_SIDE = 8
"""A perceptual hash has 8 x 8 bits: the lowest frequencies of the thumbnail."""


def thumbnail(pixels: Pixels) -> bytes:
    """32 x 32 grey pixels, row by row, of pixels_HWC or pixels_HW."""
    return thumbnail_of(Image.fromarray(pixels))


def thumbnail_of(image: Image.Image) -> bytes:
    """As `thumbnail`, of an open image."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return image.convert("L").resize(size, Image.Resampling.BILINEAR).tobytes()


def phash(thumb: bytes) -> tuple[int, int]:
    """64-bit perceptual hashes of a thumbnail and of its mirror image.

    Signs of the lowest 8 x 8 cosine frequencies around their median, in whole numbers, so that
    no processor rounds differently. Mirroring changes the sign of every second column.
    """
    grey = np.frombuffer(thumb, np.uint8).astype(np.int64).reshape(THUMBNAIL_PX, THUMBNAIL_PX)
    basis = _cosine_basis()
    spectrum = basis @ grey @ basis.T
    return _bits(spectrum), _bits(spectrum * np.array([1, -1] * (_HASH_SIDE // 2)))


@cache
def _cosine_basis() -> NDArray[np.int64]:
    """The first rows of the DCT-II matrix, times 4096, in whole numbers."""
    rows = np.arange(_HASH_SIDE)[:, None]
    columns = np.arange(THUMBNAIL_PX)[None, :]
    angles = np.pi * rows * (2 * columns + 1) / (2 * THUMBNAIL_PX)
    basis: NDArray[np.int64] = np.rint(4096 * np.cos(angles)).astype(np.int64)
    return basis


def _bits(spectrum: NDArray[Any]) -> int:
    values = spectrum.reshape(-1)
    middle = np.sort(values)[[31, 32]].sum()  # twice the median, without a fraction
    return int.from_bytes(np.packbits(2 * values > middle).tobytes(), "big")
