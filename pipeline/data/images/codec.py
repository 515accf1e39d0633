"""Opens and encodes images; everything here is deterministic for one version of the codecs."""

import importlib.metadata
import io

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the whole image; right and bottom are exclusive."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def codec_versions() -> dict[str, str]:
    """Name -> version of the libraries that shape stored bytes."""
    versions = {"pillow": importlib.metadata.version("pillow")}
    for codec in ("libjpeg_turbo", "zlib", "webp", "libtiff"):
        version = features.version(codec)
        if version:
            versions[codec] = version
    return versions


def checksum(data: bytes) -> int:
    """CRC-32C, the checksum that guards stored image bytes in a record."""
    value: int = google_crc32c.value(data)
    return value


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Read a header; raises whatever the decoder raises."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit is a spec's field, checked before decoding
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def encode_png(pixels: Pixels) -> bytes:
    """PNG of pixels_HWC or grey pixels_HW."""
    return encode(Image.fromarray(pixels), "png", quality=0)


def encode(image: Image.Image, encoding: str, *, quality: int) -> bytes:
    """JPEG (of RGB) or PNG bytes; `quality` is for JPEG."""
    sink = io.BytesIO()
    if encoding == "jpeg":
        # A fresh image: source metadata (EXIF, comments, profiles) must not ride along.
        plain = Image.frombytes("RGB", image.size, image.tobytes())
        plain.save(sink, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    else:
        plain = Image.frombytes(image.mode, image.size, image.tobytes())
        plain.save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height times `scale`, in whole pixels, at least one."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
