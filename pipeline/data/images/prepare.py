"""Brings a raw file into its stored form, or says why not: refuse, turn upright, limit, encode.

Memory: at most `BYTES_PER_PIXEL` for each pixel that `image.max_pixels` allows, and the file's own
bytes a few times over; headers that promise more are refused before anything is decoded.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.images.codec import Pixels, checksum, decode_jpeg, encode, open_image
from pipeline.data.images.hashes import phash, thumbnail
from pipeline.data.images.shrink import shrink, shrunk_size
from schemas.data import ImageSpec
from schemas.records import THUMBNAIL_PX

BYTES_PER_PIXEL = 24
"""Most that decoding takes for one pixel: a transparent image, its parts and its flat copy."""
_TILE_TAGS = (322, 323)
"""TIFF: width and length of a tile; a decoder holds at least one, however small the image is."""
_ORIENTATION_TAG = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
_JPEG_END = b"\xff\xd9"
_END_BYTES = 64
"""The end of a JPEG is looked for in so many last bytes; an end too many does no harm."""
_CUT = ("truncated", "premature end")
_DAMAGE = ("premature end of data", "bad Huffman code")
"""Remarks of the decoder after which part of the pixels are its own invention."""


@dataclass(frozen=True)
class Prepared:
    """An image as it is stored, with the facts that its record needs."""

    data: bytes
    width_px: int
    height_px: int
    orig_width_px: int
    """Of the source, upright."""
    orig_height_px: int
    encoding: str
    checksum: int
    phash: int | None
    """None where hashes are off, or a side is too short for a thumbnail."""
    phash_mirror: int | None
    thumbnail: bytes | None


@dataclass(frozen=True)
class Rejection:
    """Why a file is not stored; `reason` is one of `schemas.manifest.REJECTION_REASONS`."""

    reason: str
    message: str


def prepare(data: bytes, spec: ImageSpec, *, hashes: bool) -> Prepared | Rejection:
    """Check a file from header to last pixel and bring it into its stored form.

    Baseline RGB JPEG within the limits passes through untouched; everything else is turned
    upright, flattened on white, made RGB, scaled down and encoded again. Of several frames the
    first counts. Never raises for bad input: whatever a decoder raises becomes a rejection.
    """
    _quiet()
    if not data:
        return Rejection("zero_byte", "the file has no bytes")
    try:
        image = open_image(data)
    except Exception as error:  # a decoder may raise anything
        return _refuse_by_error(error, otherwise="not_image")
    with image:
        refusal = _refuse_by_header(image, spec)
        if refusal is not None:
            return refusal
        try:
            return _store(image, data, spec, hashes=hashes)
        except Exception as error:
            return _refuse_by_error(error, otherwise="decode_error")


def _quiet() -> None:
    """Make the codec's warnings silent: what they say is decided here, by header and by decode."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _refuse_by_error(error: Exception, *, otherwise: str) -> Rejection:
    said = str(error).lower()
    reason = "truncated" if any(word in said for word in _CUT) else otherwise
    return Rejection(reason, _sentence(error))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Object addresses differ from run to run, and messages are part of the artifact.
    return text.split(" <_io.BytesIO")[0][:200]


def _refuse_by_header(image: Image.Image, spec: ImageSpec) -> Rejection | None:
    width, height = image.size
    if max(width * height, _tile_pixels(image)) > spec.max_pixels:
        return Rejection(
            "too_many_pixels",
            f"{width} x {height} px; image.max_pixels allows {spec.max_pixels} in all",
        )
    if min(width, height) < spec.min_side_px:
        return Rejection(
            "too_small", f"{width} x {height} px; image.min_side_px is {spec.min_side_px}"
        )
    return None


def _tile_pixels(image: Image.Image) -> int:
    if image.format != "TIFF":
        return 0
    sides = [image.getexif().get(tag, 0) for tag in _TILE_TAGS]
    return int(sides[0]) * int(sides[1])


def _store(image: Image.Image, data: bytes, spec: ImageSpec, *, hashes: bool) -> Prepared:
    pixels, is_clean = _decoded(image, data, spec)
    # Asked for after decoding: TIFF images are upright by then, and say so.
    orientation = _orientation(image)
    orig_wh = image.size[::-1] if orientation in _TRANSPOSED else image.size
    size_wh = shrunk_size(orig_wh, spec.max_side_px)
    if spec.encoding == "jpeg" and is_clean and orientation == 1 and size_wh == orig_wh:
        stored = data
    else:
        pixels = shrink(_upright(pixels, orientation), size_wh)
        stored = encode(pixels, spec.encoding, quality=spec.quality)
    return _describe(pixels, stored, _Facts(orig_wh, spec.encoding, hashes))


@dataclass(frozen=True)
class _Facts:
    """What the pixels do not say of themselves."""

    orig_wh: tuple[int, int]
    encoding: str
    hashes: bool


def _describe(pixels: Pixels, data: bytes, facts: _Facts) -> Prepared:
    height, width, _ = pixels.shape
    thumb = thumbnail(pixels) if facts.hashes and min(height, width) >= THUMBNAIL_PX else None
    own, mirror = phash(thumb) if thumb is not None else (None, None)
    return Prepared(
        data=data,
        width_px=width,
        height_px=height,
        orig_width_px=facts.orig_wh[0],
        orig_height_px=facts.orig_wh[1],
        encoding=facts.encoding,
        checksum=checksum(data),
        phash=own,
        phash_mirror=mirror,
        thumbnail=thumb,
    )


def _decoded(image: Image.Image, data: bytes, spec: ImageSpec) -> tuple[Pixels, bool]:
    """Pixels_HWC, not yet upright, and whether they come from a JPEG that may stay as it is."""
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        pixels = _decoded_jpeg(image.size, data, spec)
        if pixels is not None:
            baseline = image.format == "JPEG" and not image.info.get("progressive")
            return pixels, baseline and image.mode == "RGB" and data.endswith(_JPEG_END)
    image.load()
    return np.array(_rgb(image)), False


def _decoded_jpeg(size_wh: tuple[int, int], data: bytes, spec: ImageSpec) -> Pixels | None:
    """Pixels_HWC of a JPEG in which all pixels are, or None if the general codec has to decide.

    The general codec fills up what is missing, and counts a file without its two last bytes as
    cut off; here it is the other way round. A file with more behind its end, or none, is whole,
    but stricter readers refuse it: it is not stored as it is.
    """
    width, height = shrunk_size(size_wh, spec.max_side_px)
    # At twice the size or more, resizing leaves nothing to see of decoding at a fraction.
    at_least_hw = (0, 0) if (width, height) == size_wh else (2 * height, 2 * width)
    whole = data if _JPEG_END in data[-_END_BYTES:] else data + _JPEG_END
    try:
        return decode_jpeg(whole, at_least_hw=at_least_hw)
    except ValueError as error:
        if any(word in str(error) for word in _DAMAGE):
            raise
        return None


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none, or none that means anything."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing of the pixels
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels_HWC as a viewer shows them: the tag says where the first row and column belong."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: 257 maps 65535 to 255 exactly.
        deep = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range that would be known")
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        flat = Image.new("RGB", transparent.size, "white")
        flat.paste(transparent, mask=transparent)
        return flat
    return image.convert("RGB")
