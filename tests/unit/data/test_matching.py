import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.curation.matching import Limits, Side, Skip, near_pairs, thumbnail_differences

HASHES = st.integers(0, 2**64 - 1)


class BlankThumbnails:
    """Every thumbnail is the same, so that hashes alone decide."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(rows), 1024), np.uint8)


def side(own: list[int], mirror: list[int] | None = None) -> Side:
    mirrored = own if mirror is None else mirror
    return Side(np.array(own, np.uint64), np.array(mirrored, np.uint64), BlankThumbnails())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(HASHES, HASHES), min_size=1, max_size=8),
    st.lists(HASHES, min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 15), st.sets(st.integers(0, 63), max_size=9)), max_size=8),
    st.integers(0, 7),
)
def test_the_search_by_bands_finds_exactly_the_near_pairs(
    keepers: list[tuple[int, int]],
    rows: list[int],
    flips: list[tuple[int, set[int]]],
    max_bits: int,
) -> None:
    every = [value for pair in keepers for value in pair]
    for place, bits in flips:
        rows.append(every[place % len(every)] ^ sum(1 << bit for bit in bits))
    expected = {
        (i, j): min((own ^ row).bit_count(), (mirror ^ row).bit_count())
        for i, (own, mirror) in enumerate(keepers)
        for j, row in enumerate(rows)
    }
    own, mirror = (list(some) for some in zip(*keepers, strict=True))
    found = list(
        near_pairs(
            side(own, mirror),
            side(rows),
            Limits(max_bits, 0.0, 0.0),
            skip=Skip(len(keepers), len(rows)),
        )
    )
    pairs = [
        (int(i), int(j), int(bits))
        for piece in found
        for i, j, bits in zip(piece.keeper, piece.row, piece.hamming_bits, strict=True)
    ]
    assert pairs == sorted((i, j, bits) for (i, j), bits in expected.items() if bits <= max_bits)


def test_many_equal_hashes_come_in_pieces_of_bounded_size() -> None:
    count = 600
    same = side([7] * count)
    skip = Skip(count, count, within=True)
    sizes = [len(piece.row) for piece in near_pairs(same, same, Limits(7, 0.0, 0.0), skip=skip)]
    assert sum(sizes) == count * (count - 1) // 2
    assert max(sizes) < 2**19


def test_what_is_learned_from_one_piece_spares_the_next() -> None:
    count = 600
    same = side([7] * count)
    skip = Skip(count, count, within=True)
    seen = 0
    for piece in near_pairs(same, same, Limits(7, 0.0, 0.0), skip=skip):
        seen += len(piece.row)
        skip.keepers[:] = skip.rows[:] = True
    assert 0 < seen < count * (count - 1) // 4


def test_thumbnails_are_compared_with_their_mirror_images_too() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    thumbs = rng.integers(0, 200, (3, 32, 32), dtype=np.uint8)
    others = np.stack([thumbs[0], thumbs[1][:, ::-1], thumbs[2] + 7])
    differences, contrast = thumbnail_differences(thumbs.reshape(3, -1), others.reshape(3, -1))
    assert differences.tolist() == [0, 0, 7]
    means = thumbs.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))
    deviation = np.abs(means - means.mean(axis=(1, 2), keepdims=True)).mean(axis=(1, 2))
    np.testing.assert_allclose(contrast, deviation, rtol=1e-5)


@pytest.mark.parametrize(
    ("contrast", "difference", "found"), [(40, 4, 1), (40, 6, 0), (10, 4, 0), (2, 1, 1), (2, 2, 0)]
)
def test_pale_images_have_to_be_more_alike(contrast: int, difference: int, found: int) -> None:
    """At most five grey levels, at most a fifth of the contrast; one level always passes."""
    first = np.full((32, 32), 100, np.uint8)
    first[:16] += np.uint8(2 * contrast)
    second = first + np.uint8(difference)

    class Thumbnails:
        def __init__(self, pixels: NDArray[np.uint8]) -> None:
            self._pixels = pixels.reshape(1, -1)

        def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            return self._pixels[rows]

    sides = [
        Side(np.array([9], np.uint64), np.array([9], np.uint64), Thumbnails(pixels))
        for pixels in (first, second)
    ]
    pairs = list(near_pairs(*sides, Limits(7, 5.0, 0.2), skip=Skip(1, 1)))
    assert sum(len(piece.row) for piece in pairs) == found
