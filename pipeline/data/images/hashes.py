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
_CLEARLY = 8.0
"""Grey levels, as a coefficient of the orthonormal cosine transform."""


def thumbnail(pixels: Pixels) -> bytes:
    """32 x 32 grey pixels, row by row, of pixels_HWC or pixels_HW."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    grey = Image.fromarray(pixels).convert("L")
    return grey.resize(size, Image.Resampling.BILINEAR).tobytes()


def phash(thumb: bytes) -> tuple[int, int]:
    """64-bit perceptual hashes of a thumbnail and of its mirror image.

    Which of the lowest 8 x 8 cosine frequencies are clearly above zero: by more than encoding again
    changes them, so that frequencies which an image does not have are no coin tosses. In whole
    numbers, so that no processor rounds differently. Mirroring changes the sign of every second
    column.
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


@cache
def _thresholds() -> NDArray[np.int64]:
    """What is clearly above zero, in the units of the spectrum: [8, 8]."""
    lengths = np.sqrt((_cosine_basis() ** 2).sum(axis=1))
    thresholds: NDArray[np.int64] = np.rint(_CLEARLY * np.outer(lengths, lengths)).astype(np.int64)
    return thresholds


def _bits(spectrum: NDArray[Any]) -> int:
    above = spectrum > _thresholds()
    return int.from_bytes(np.packbits(above).tobytes(), "big")
