"""Brings a raw file into its stored form, or says why not: refuse, turn upright, limit, encode."""

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.images.codec import checksum, encode, open_image, scaled
from pipeline.data.images.hashes import phash, thumbnail_of
from schemas.data import ImageSpec
from schemas.records import THUMBNAIL_PX

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
            image.load()
            return _store(image, data, spec, hashes=hashes)
        except Exception as error:
            return _refuse_by_error(error, otherwise="decode_error")


def _quiet() -> None:
    """Make the codec's warnings silent: what they say is decided here, by header and by decode."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _refuse_by_error(error: Exception, *, otherwise: str) -> Rejection:
    reason = "truncated" if "truncated" in str(error).lower() else otherwise
    return Rejection(reason, _sentence(error))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Object addresses differ from run to run, and messages are part of the artifact.
    return text.split(" <_io.BytesIO")[0][:200]


def _refuse_by_header(image: Image.Image, spec: ImageSpec) -> Rejection | None:
    width, height = image.size
    if width * height > spec.max_pixels:
        return Rejection(
            "too_many_pixels",
            f"{width} x {height} px; image.max_pixels allows {spec.max_pixels} in all",
        )
    if min(width, height) < spec.min_side_px:
        return Rejection(
            "too_small", f"{width} x {height} px; image.min_side_px is {spec.min_side_px}"
        )
    return None


def _store(image: Image.Image, data: bytes, spec: ImageSpec, *, hashes: bool) -> Prepared:
    if spec.encoding == "jpeg" and _passes_through(image, spec):
        return _describe(image, data, image.size, encoding="jpeg", hashes=hashes)
    upright = _upright(image)
    stored = _limited(_rgb(upright), spec.max_side_px)
    encoded = encode(stored, spec.encoding, quality=spec.quality)
    return _describe(stored, encoded, upright.size, encoding=spec.encoding, hashes=hashes)


def _passes_through(image: Image.Image, spec: ImageSpec) -> bool:
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and not image.info.get("progressive")
        and _orientation(image) == 1
        and max(image.size) <= spec.max_side_px
    )


def _describe(
    image: Image.Image,
    data: bytes,
    orig_size: tuple[int, int],
    *,
    encoding: str,
    hashes: bool,
) -> Prepared:
    thumb = thumbnail_of(image) if hashes and min(image.size) >= THUMBNAIL_PX else None
    own, mirror = phash(thumb) if thumb is not None else (None, None)
    return Prepared(
        data=data,
        width_px=image.width,
        height_px=image.height,
        orig_width_px=orig_size[0],
        orig_height_px=orig_size[1],
        encoding=encoding,
        checksum=checksum(data),
        phash=own,
        phash_mirror=mirror,
        thumbnail=thumb,
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing of the pixels
        return 1
    return value if value in _ORIENTATIONS else 1


def _upright(image: Image.Image) -> Image.Image:
    method = _ORIENTATIONS.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: 257 maps 65535 to 255 exactly.
        deep = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range that would be known")
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB")


def _limited(image: Image.Image, max_side_px: int) -> Image.Image:
    longest = max(image.size)
    if longest <= max_side_px:
        return image
    size = scaled(image.size, max_side_px / longest)
    return image.resize(size, Image.Resampling.LANCZOS)
