"""The fast decoder gives what the general one gives, whole or down to a row."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images.codec import encode as store
from pipeline.data.images.decode import decode, decode_rows
from pipeline.data.images.render import resize
from tests.support.corpora import encode, odd_files, picture

KINDS = list(itertools.product((0, 1, 2), (30, 95), (False, True), (0, 4)))


def general(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("subsampling", "quality", "progressive", "restarts"), KINDS)
def test_rows_of_any_jpeg_are_those_of_the_whole(
    subsampling: int, quality: int, progressive: bool, restarts: int
) -> None:
    options = {"subsampling": subsampling, "quality": quality, "progressive": progressive}
    pixels = picture(0, quality, height=131, width=75)
    data = encode(pixels, restart_marker_blocks=restarts, **options)
    whole = general(data)
    np.testing.assert_array_equal(decode(data), whole)
    for rows in (1, 15, 16, 17, 31, 32, 33, 100, 130, 131):
        some = decode_rows(data, rows)
        assert len(some) >= rows
        np.testing.assert_array_equal(some[:rows], whole[:rows])
        assert progressive or len(some) <= rows + 16, "rows below are not decoded"


@pytest.mark.parametrize("name", ["grey.jpg", "cmyk.jpg", "lossless.webp", "wrong_suffix.PNG"])
def test_unusual_files_are_read_as_by_the_general_codec(name: str) -> None:
    data = odd_files()[name]
    np.testing.assert_array_equal(decode(data), general(data))
    np.testing.assert_array_equal(decode_rows(data, 9)[:9], general(data)[:9])


def test_raw_images_are_stored_as_they_are_and_open_elsewhere() -> None:
    pixels = picture(1, 4, height=9, width=13)
    data = store(pixels, "raw", quality=0)
    np.testing.assert_array_equal(decode(data), pixels)
    np.testing.assert_array_equal(general(data), pixels)
    assert len(data) < pixels.size + 20


def test_garbage_is_an_error() -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x00" * 9, b"P6 x"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever a decoder raises
            decode_rows(data, 3)


@pytest.mark.parametrize("size", [(7, 5), (24, 40), (64, 64), (100, 3)])
@pytest.mark.parametrize("mirror", [False, True])
def test_resizing_is_that_of_the_general_codec_within_a_level(
    size: tuple[int, int], mirror: bool
) -> None:
    pixels = picture(2, 6, height=50, width=70)
    box = (11, 3, 61, 47)
    out = np.empty((*size, 3), np.uint8)
    resize(pixels, box, out, mirror=mirror)
    image = Image.fromarray(pixels).crop(box).resize(size[::-1], Image.Resampling.BILINEAR)
    expected = np.asarray(image).astype(int)
    assert np.abs(out.astype(int) - (expected[:, ::-1] if mirror else expected)).max() <= 1
