"""What formats and what damage `prepare` meets, and what it makes of them."""

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images.codec import decode_jpeg
from pipeline.data.images.decode import decode
from pipeline.data.images.prepare import BYTES_PER_PIXEL, Prepared, Rejection, prepare
from pipeline.data.images.shrink import shrink
from schemas.data import ImageSpec
from tests.support.corpora import encode, picture

SPEC = ImageSpec(max_side_px=64, min_side_px=4)
LOSSLESS = ImageSpec(encoding="png")


def kept(data: bytes, spec: ImageSpec = LOSSLESS) -> Prepared:
    result = prepare(data, spec, hashes=True)
    assert isinstance(result, Prepared), result
    return result


def refused(data: bytes, spec: ImageSpec = SPEC) -> Rejection:
    result = prepare(data, spec, hashes=True)
    assert isinstance(result, Rejection)
    return result


def converted(pixels: np.ndarray, mode: str, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, form, **options)
    return sink.getvalue()


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: np.rot90,
}
"""Orientation tag -> what a viewer does to the stored pixels, as the EXIF standard has it."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_each_orientation_is_turned_upright(form: str, orientation: int) -> None:
    stored = picture(0, orientation, height=40, width=56)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    data = encode(stored, form, exif=exif, **options)
    result = kept(data)
    expected = TURNS[orientation](stored).astype(int)
    shown = decode(result.data).astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= (0 if form != "JPEG" else 40)
    assert (result.orig_height_px, result.orig_width_px) == expected.shape[:2]


def exif_with(entry: bytes) -> bytes:
    """A JPEG whose EXIF block has one entry of 12 bytes."""
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(12)
    whole = encode(picture(0, 1), quality=95)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", 0x011A, 5, 1, 26),  # a resolution of 0 / 0
        struct.pack("<HHII", 0x0112, 3, 1, 77),  # an orientation that does not exist
        struct.pack("<HHII", 0x0112, 2, 4, 0x41414141),  # an orientation that is text
        struct.pack("<HHII", 0x0112, 3, 2**31, 2**31),  # far behind the end
        b"\xff" * 12,
    ],
)
def test_broken_exif_says_nothing_of_the_pixels(entry: bytes) -> None:
    data = exif_with(entry)
    assert kept(data, SPEC).data == data


def test_cmyk_jpeg_has_the_colours_that_were_meant() -> None:
    pixels = np.full((32, 32, 3), (200, 30, 60), np.uint8)
    data = converted(pixels, "CMYK", "JPEG", quality=95)
    assert b"Adobe" in data, "inverted, as Adobe has it"
    assert np.abs(decode(kept(data).data).astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_kept(form: str) -> None:
    first, second = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    options: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(second)]}
    assert decode(kept(encode(first, form, **options)).data).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_becomes_rgb(mode: str) -> None:
    grey = picture(2, 1)[..., 0]
    data = (
        encode(grey.astype(np.uint16) * 257, "PNG")
        if mode == "I;16"
        else converted(picture(2, 1), mode, "PNG")
    )
    assert decode(kept(data).data).shape == (48, 64, 3)


def test_a_palette_with_a_clear_colour_is_flattened_on_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0] * 256)
    sink = io.BytesIO()
    image.save(sink, "PNG", transparency=0)
    assert (decode(kept(sink.getvalue()).data) == 255).all()


def test_half_clear_pixels_are_mixed_with_white() -> None:
    pixels = np.full((40, 40, 4), (0, 100, 200, 128), np.uint8)
    shown = decode(kept(encode(pixels, "PNG")).data)
    assert np.abs(shown[0, 0].astype(int) - [127, 177, 227]).max() <= 1


WHOLE = {
    form: encode(picture(1, 9, height=60, width=80), form)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_file_cut_anywhere_is_refused_as_damaged(form: str) -> None:
    whole = WHOLE[form]
    for length in range(1, len(whole) - 20, max(1, len(whole) // 25)):
        result = refused(whole[:length])
        allowed = ("truncated", "decode_error") if length > 800 else ("truncated", "not_image")
        assert result.reason in allowed, (length, result)


@pytest.mark.parametrize("form", WHOLE)
def test_noise_in_the_middle_never_raises(form: str) -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    for _ in range(25):
        damaged = bytearray(WHOLE[form])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(0, 256)
        assert isinstance(prepare(bytes(damaged), SPEC, hashes=True), Prepared | Rejection)


def test_a_jpeg_without_its_end_or_with_something_behind_it_is_encoded_again() -> None:
    whole = encode(picture(0, 1, height=60, width=60), quality=92)
    for data in (whole[:-2], whole + b"ftypmp4 a film of two seconds"):
        result = kept(data, SPEC)
        assert result.data != data
        assert result.data.endswith(b"\xff\xd9")
        same = np.abs(decode(result.data).astype(int) - decode(whole).astype(int))
        assert same.mean() < 3
    assert kept(whole, SPEC).data == whole


def test_both_jpeg_decoders_give_the_same_pixels() -> None:
    for quality, sampling in ((95, 0), (80, 1), (60, 2)):
        data = encode(picture(2, 8, height=91, width=77), quality=quality, subsampling=sampling)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_jpeg(data), np.asarray(image))


def test_shrinking_is_within_two_levels_of_pillows() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    for height, width, to in (
        (533, 400, (384, 512)),
        (900, 1200, (64, 48)),
        (3, 700, (64, 1)),
        (65, 64, (63, 64)),
    ):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        pillow = Image.fromarray(pixels).resize(to, Image.Resampling.LANCZOS)
        difference = np.abs(shrink(pixels, to).astype(int) - np.asarray(pillow))
        assert difference.max() <= 2


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same() -> None:
    pixels = picture(2, 4, height=900, width=1200)
    data = encode(pixels, quality=95)
    stored = decode(kept(data, ImageSpec(max_side_px=128, encoding="png")).data).astype(int)
    full = shrink(decode(data), (128, 96)).astype(int)
    assert np.abs(stored - full).mean() < 1


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bombs() -> dict[str, bytes]:
    """Small files that promise far more pixels than a spec allows."""
    side = 60_000
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    gif = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"
    canvas, frame = [struct.pack("<I", it - 1)[:3] for it in (16_000, 80)], WHOLE["WEBP"][12:]
    place = bytes(6) + canvas[1] + struct.pack("<I", 59)[:3] + bytes(4) + frame
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas[0] * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(place))
    body += place
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "png": png + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
        "gif whose frame is larger than its screen": gif,
        "webp whose canvas is larger than its frame": b"RIFF" + struct.pack("<I", len(body)) + body,
        "bmp": bmp + bytes(40),
        "tiff": tiff({256: side, 257: side}),
        "tiff of one huge tile": tiff({256: 10, 257: 10, 322: side, 323: side}),
        "jpeg": WHOLE["JPEG"].replace(struct.pack(">HH", 60, 80), struct.pack(">HH", side, side)),
    }


def tiff(tags: dict[int, int]) -> bytes:
    """A grey TIFF with these sides, and hardly any pixels behind them."""
    place = {324: 8, 325: 4} if 322 in tags else {273: 8, 279: 4, 278: tags[257]}
    entries = {258: 8, 259: 1, 262: 1, 277: 1, **tags, **place}
    body = b"II*\0" + struct.pack("<I", 12) + bytes(4)
    body += struct.pack("<H", len(entries))
    for tag in sorted(entries):
        body += struct.pack("<HHII", tag, 4, 1, entries[tag])
    return body + bytes(4)


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    result = refused(bombs()[name], ImageSpec())
    assert result.reason == "too_many_pixels", result


MEASURE = """
import resource, sys
from pipeline.data.images import prepare as it
import torch  # its own memory is not the image's
from schemas.data import ImageSpec
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open(sys.argv[1], "rb") as file:
    data = file.read()
result = it.prepare(data, ImageSpec(max_pixels=int(sys.argv[2])), hashes=True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(getattr(result, "reason", "kept"), (after - before) * 1024)
"""


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "I;16")],
)
def test_memory_of_a_decode_stays_within_the_stated_bound(
    tmp_path: Any, form: str, mode: str
) -> None:
    side = 3000
    image = Image.new(mode, (side, side))
    if mode == "P":
        image.info["transparency"] = 0
    options = {"progressive": True} if mode == "RGB" else {}
    path = tmp_path / "large"
    image.save(path, form, **options)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(side * side)],
        capture_output=True,
        text=True,
        check=True,
    )
    reason, used = done.stdout.split()
    assert reason == "kept"
    assert int(used) <= BYTES_PER_PIXEL * side * side + 3 * path.stat().st_size + 2**24
