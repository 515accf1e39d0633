import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images.codec import Box, Pixels, encode_png
from pipeline.data.images.decode import decode
from pipeline.data.images.hashes import phash, thumbnail
from pipeline.data.images.prepare import Prepared, Rejection, prepare
from pipeline.data.images.render import render, resize
from pipeline.data.images.sheet import tile
from schemas.data import ImageSpec
from tests.support.corpora import broken_files, encode, odd_files, picture

SPEC = ImageSpec(max_side_px=64, min_side_px=4)


def prepared(data: bytes, spec: ImageSpec = SPEC) -> Prepared:
    result = prepare(data, spec, hashes=True)
    assert isinstance(result, Prepared), result
    return result


def resized(pixels: Pixels, box: Box, size_hw: tuple[int, int]) -> Pixels:
    out = np.empty((*size_hw, 3), np.uint8)
    resize(pixels, box, out)
    return out


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_file_is_rejected_with_its_reason(name: str) -> None:
    data, reason = broken_files()[name]
    result = prepare(data, SPEC, hashes=True)
    assert isinstance(result, Rejection)
    assert result.reason == reason
    assert result.message
    assert "0x" not in result.message, "addresses differ from run to run"


@pytest.mark.parametrize("name", odd_files())
def test_an_unusual_image_becomes_baseline_rgb(name: str) -> None:
    result = prepared(odd_files()[name])
    with Image.open(io.BytesIO(result.data)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert not image.info.get("progressive")
        assert image.getexif().get(0x0112, 1) == 1
        assert (image.width, image.height) == (result.width_px, result.height_px)


def test_a_baseline_rgb_jpeg_within_the_limit_passes_through_untouched() -> None:
    data = encode(picture(0, 1), quality=92)
    assert prepared(data).data == data


def test_a_large_image_is_scaled_down_to_the_limit_and_never_up() -> None:
    large = prepared(encode(picture(0, 1, height=300, width=200)))
    assert (large.height_px, large.width_px) == (64, 43)
    assert (large.orig_height_px, large.orig_width_px) == (300, 200)
    small = prepared(encode(picture(0, 1, height=20, width=30), "PNG"))
    assert (small.height_px, small.width_px) == (20, 30)


def test_orientation_is_applied_to_pixels_and_sizes() -> None:
    turned = prepared(odd_files()["turned.jpg"])
    assert (turned.height_px, turned.width_px) == (64, 48)
    upright = np.rot90(picture(1, 50), k=-1).astype(int)
    assert np.abs(decode(turned.data).astype(int) - upright).mean() < 12


def test_transparency_is_flattened_on_white() -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    spec = ImageSpec(encoding="png")
    assert (decode(prepared(encode(clear, "PNG"), spec).data) == 255).all()


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    grey = picture(1, 54)[..., 0]
    spec = ImageSpec(encoding="png")
    stored = decode(prepared(encode(grey.astype(np.uint16) * 257, "PNG"), spec).data)
    np.testing.assert_array_equal(stored[..., 0], grey)


def test_encoding_again_gives_the_same_bytes() -> None:
    data = odd_files()["progressive.jpg"]
    assert prepared(data).data == prepared(data).data


def test_hashes_are_left_out_where_asked_or_where_the_image_is_too_small() -> None:
    result = prepare(encode(picture(0, 1)), SPEC, hashes=False)
    assert isinstance(result, Prepared)
    assert (result.phash, result.phash_mirror, result.thumbnail) == (None, None, None)
    assert prepared(encode(picture(0, 1, height=31, width=64))).phash is None


def test_a_mirror_image_has_the_mirrored_hash() -> None:
    pixels = picture(2, 3, height=64, width=64)
    own, mirror = phash(thumbnail(pixels))
    assert phash(thumbnail(pixels[:, ::-1])) == (mirror, own)
    assert own != mirror


def test_a_hash_survives_compression_and_scaling_but_tells_pictures_apart() -> None:
    pixels = picture(1, 3, height=200, width=300)
    own = prepared(encode(pixels, quality=95)).phash
    assert own is not None
    smaller = resized(pixels, (0, 0, 300, 200), (90, 140))
    again = prepared(encode(smaller, quality=60)).phash
    other = prepared(encode(picture(1, 4, height=200, width=300))).phash
    assert again is not None
    assert other is not None
    assert (own ^ again).bit_count() <= 4
    assert (own ^ other).bit_count() > 7


def test_rendering_is_decoding_and_resizing() -> None:
    data = encode(picture(0, 5))
    box = (3, 1, 60, 40)
    rendered = np.empty((24, 32, 3), np.uint8)
    render(data, box, rendered)
    np.testing.assert_array_equal(rendered, resized(decode(data), box, (24, 32)))


def test_grey_png_keeps_every_value() -> None:
    grey = picture(0, 6)[..., 1]
    np.testing.assert_array_equal(decode(encode_png(grey))[..., 0], grey)


def test_a_sheet_has_a_cell_for_each_picture() -> None:
    sheet = decode(tile([(picture(0, n), f"name {n}") for n in range(5)], columns=2, cell_px=50))
    assert sheet.shape == (3 * 64, 100, 3)
