"""Opens and encodes images; everything here is deterministic for one version of the codecs."""

import importlib.metadata
import io
import math

import google_crc32c
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the whole image; right and bottom are exclusive."""

RAW_MAGIC = b"P6"
"""Raw pixels are stored as binary PPM, which every viewer opens."""
_RAW_HEADER = 64
"""Bytes in which a raw image has named its sides."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def codec_versions() -> dict[str, str]:
    """Name -> version of the libraries that shape stored bytes."""
    versions = {
        # The local part of a version (`+cpu`) names a build; the code that runs here is the same.
        name: importlib.metadata.version(name).partition("+")[0]
        for name in ("pillow", "simplejpeg", "torch")
    }
    for codec in ("libjpeg_turbo", "zlib", "webp", "libtiff"):
        version = features.version(codec)
        if version:
            versions[codec] = version
    return versions


def checksum(data: bytes) -> int:
    """CRC-32C, the checksum that guards stored image bytes in a record."""
    value: int = google_crc32c.value(data)
    return value


def extend_checksum(value: int, data: bytes) -> int:
    """The checksum of what `value` is the checksum of, followed by `data`."""
    extended: int = google_crc32c.extend(value, data)
    return extended


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Read a header; raises whatever the decoder raises."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit is a spec's field, checked before decoding
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def decode_jpeg(data: bytes, *, at_least_hw: tuple[int, int] = (0, 0)) -> Pixels:
    """Pixels_HWC of an RGB JPEG without any fault, equal to what the general codec gives.

    A positive `at_least_hw` allows decoding at a fraction of the size (in eighths) that is no
    smaller: less time and memory, though every coefficient is read all the same.

    Raises:
        ValueError: If the decoder finds anything to remark on.
    """
    height, width = at_least_hw
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=height, min_width=width
    )
    return pixels


def encode_png(pixels: Pixels) -> bytes:
    """PNG of pixels_HWC or grey pixels_HW."""
    return encode(pixels, "png", quality=0)


def raw_pixels(data: bytes) -> Pixels:
    """The pixels_HWC of an image that `encode` stored as `raw`; a view of its bytes."""
    _, width, height, _ = data[:_RAW_HEADER].split(maxsplit=3)
    shape = int(height), int(width), 3
    return np.frombuffer(data, np.uint8, offset=len(data) - math.prod(shape)).reshape(shape)


def encode(pixels: Pixels, encoding: str, *, quality: int) -> bytes:
    """JPEG or raw (PPM) bytes of pixels_HWC, or PNG of these or of grey pixels_HW.

    `quality` is for JPEG: 4:2:0, with the standard's Huffman tables (tables made to measure save
    2 % of the bytes and double the time). Nothing of the source but its pixels is in the bytes.
    """
    if encoding == "raw":
        height, width, _ = pixels.shape
        return RAW_MAGIC + b" %d %d 255\n" % (width, height) + pixels.tobytes()
    if encoding == "jpeg":
        data: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420", fastdct=False
        )
        return data
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height times `scale`, in whole pixels, at least one."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
