"""The only door to the image codec: refuse, normalise, encode, decode, resize, hash.

Pixels are uint8 arrays. Axis letters: H W pixels, C the three channels red, green, blue.
Everything here is deterministic for one version of Pillow and its libraries.
"""

import importlib.metadata
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFile, features

from schemas.data import ImageSpec
from schemas.records import THUMBNAIL_PX

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the whole image; right and bottom are exclusive."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
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
_HASH_SIDE = 8
"""A perceptual hash has 8 x 8 bits: the lowest frequencies of the thumbnail."""


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


def codec_versions() -> dict[str, str]:
    """Name -> version of the libraries that shape stored bytes."""
    versions = {"pillow": importlib.metadata.version("pillow")}
    for codec in ("libjpeg_turbo", "zlib", "webp", "libtiff"):
        version = features.version(codec)
        if version:
            versions[codec] = version
    return versions


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
        image = _open(data)
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


def decode(data: bytes) -> Pixels:
    """Stored bytes -> pixels_HWC."""
    with _open(data) as image:
        return np.asarray(_coloured(image))


def render(data: bytes, box: Box, size_hw: tuple[int, int]) -> Pixels:
    """Decode, cut out `box` and resize it to `size_hw`, as `resize` does -> pixels_HWC."""
    with _open(data) as image:
        return _resized(_coloured(image), box, size_hw)


def resize(pixels: Pixels, box: Box, size_hw: tuple[int, int]) -> Pixels:
    """Cut `box` out of pixels_HWC and resize it bilinearly, antialiased when shrinking."""
    return _resized(Image.fromarray(pixels), box, size_hw)


def thumbnail(pixels: Pixels) -> bytes:
    """32 x 32 grey pixels, row by row, of pixels_HWC or pixels_HW."""
    return _thumbnail(Image.fromarray(pixels))


def phash(thumb: bytes) -> tuple[int, int]:
    """64-bit perceptual hashes of a thumbnail and of its mirror image.

    Signs of the lowest 8 x 8 cosine frequencies around their median, in whole numbers, so that
    no processor rounds differently. Mirroring changes the sign of every second column.
    """
    grey = np.frombuffer(thumb, np.uint8).astype(np.int64).reshape(THUMBNAIL_PX, THUMBNAIL_PX)
    basis = _cosine_basis()
    spectrum = basis @ grey @ basis.T
    return _bits(spectrum), _bits(spectrum * np.array([1, -1] * (_HASH_SIDE // 2)))


def checksum(data: bytes) -> int:
    """CRC-32C, the checksum that guards stored image bytes in a record."""
    value: int = google_crc32c.value(data)
    return value


def encode_png(pixels: Pixels) -> bytes:
    """PNG of pixels_HWC or grey pixels_HW."""
    return _encode(Image.fromarray(pixels), "png", quality=0)


def tile(pictures: Sequence[tuple[Pixels, str]], *, columns: int, cell_px: int = 112) -> bytes:
    """PNG of a grid of pictures, row by row, each with a caption below it."""
    caption_px = 14
    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = Image.new("RGB", (columns * cell_px, rows * (cell_px + caption_px)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(pictures):
        left, top = index % columns * cell_px, index // columns * (cell_px + caption_px)
        picture = Image.fromarray(pixels)
        scale = (cell_px - 4) / max(picture.size)
        shown = picture.resize(_scaled(picture.size, scale), Image.Resampling.BILINEAR)
        sheet.paste(shown, (left + 2, top + 2))
        text = caption.encode("ascii", "replace").decode()[: cell_px // 6]
        draw.text((left + 2, top + cell_px), text, fill="black")
    return _encode(sheet, "png", quality=0)


def _open(data: bytes) -> ImageFile.ImageFile:
    Image.MAX_IMAGE_PIXELS = None  # our own limit is a spec's field, checked before decoding
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _coloured(image: Image.Image) -> Image.Image:
    image.load()
    # Converting to the mode that an image has would only copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


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
    encoded = _encode(stored, spec.encoding, quality=spec.quality)
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
    thumb = _thumbnail(image) if hashes and min(image.size) >= THUMBNAIL_PX else None
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
    size = _scaled(image.size, max_side_px / longest)
    return image.resize(size, Image.Resampling.LANCZOS)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _encode(image: Image.Image, encoding: str, *, quality: int) -> bytes:
    sink = io.BytesIO()
    if encoding == "jpeg":
        # A fresh image: source metadata (EXIF, comments, profiles) must not ride along.
        plain = Image.frombytes("RGB", image.size, image.tobytes())
        plain.save(sink, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    else:
        plain = Image.frombytes(image.mode, image.size, image.tobytes())
        plain.save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def _resized(image: Image.Image, box: Box, size_hw: tuple[int, int]) -> Pixels:
    height, width = size_hw
    fitted = image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    return np.asarray(fitted)


def _thumbnail(image: Image.Image) -> bytes:
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return image.convert("L").resize(size, Image.Resampling.BILINEAR).tobytes()


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
