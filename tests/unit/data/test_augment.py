"""What augmentation draws, and what it does to pixels."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.feed.augment import Drawn, Draws, apply, centre_box, uniforms
from pipeline.data.feed.philox import philox
from pipeline.data.images.alter import OPERATIONS, alter
from pipeline.data.images.codec import Pixels
from pipeline.data.images.decode import decode
from pipeline.data.images.render import resize
from schemas.samples import AugmentSpec, ColourJitterSpec, RandAugmentSpec
from tests.support.corpora import encode, picture
from tests.support.loading import places

EVERYTHING = AugmentSpec(
    crop="inception",
    flip=True,
    colour_jitter=ColourJitterSpec(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    randaugment=RandAugmentSpec(layers=2, magnitude=10),
    erase_ratio=0.5,
)


@pytest.mark.parametrize("crop", ["none", "inception", "shift"])
def test_a_drawn_box_lies_inside_the_image(crop: Any) -> None:
    spec = AugmentSpec(crop=crop, flip=True, erase_ratio=1)
    draws = Draws(spec, places(0, range(200)), seed=1)
    for index in range(200):
        height, width = 1 + index % 37, 1 + index % 23
        drawn = draws.params(index, (height, width), (8, 8))
        assert drawn.erased is not None
        for box, (bottom, right) in ((drawn.box, (height, width)), (drawn.erased, (8, 8))):
            assert 0 <= box[0] < box[2] <= right
            assert 0 <= box[1] < box[3] <= bottom
        assert max(map(abs, drawn.shift_hw)) <= 1


def drawn_at(seed: int, epoch: int, positions: Any, source: int = 0) -> list[Drawn]:
    draws = Draws(EVERYTHING, places(epoch, positions, source=source), seed=seed)
    return [draws.params(i, (100, 140), (32, 32)) for i in range(len(positions))]


def test_draws_differ_by_place_and_seed_and_repeat() -> None:
    keys = list(itertools.product((0, 1), (0, 1), ([0], [1]), (0, 1)))
    assert len({drawn_at(*key)[0] for key in keys}) == len(keys)
    assert [drawn_at(*key) for key in keys] == [drawn_at(*key) for key in keys]


def test_draws_are_spread_as_the_spec_says() -> None:
    drawn = drawn_at(0, 0, range(400))
    assert 150 < sum(params.mirror for params in drawn) < 250
    assert 150 < sum(params.erased is not None for params in drawn) < 250
    factors = np.array([params.jitter for params in drawn])
    assert (factors[:, :3].min(axis=0) >= 0.6).all()
    assert (factors[:, :3].max(axis=0) <= 1.4).all()
    assert abs(factors[:, 3]).max() <= 0.1
    np.testing.assert_allclose(factors.mean(axis=0), [1, 1, 1, 0], atol=0.05)
    names = {name for params in drawn for name, _ in params.operations}
    assert names == set(OPERATIONS)
    assert {abs(strength) for params in drawn for _, strength in params.operations} == {10.0}


def test_a_draw_does_not_depend_on_what_is_drawn_with_it() -> None:
    positions = [7, 3, 2**40, 2**62 + 1, 3]
    together = uniforms("inception", 1, places(2, positions), count=5)
    for index, position in enumerate(positions):
        alone = uniforms("inception", 1, places(2, [position]), count=5)
        np.testing.assert_array_equal(together[index], alone[0])
    fewer = uniforms("inception", 1, places(2, positions), count=2)
    np.testing.assert_array_equal(together[:, :2], fewer)
    assert uniforms("inception", 1, places(2, positions), count=0).shape == (5, 0)


def test_numbers_are_those_of_numpys_philox() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (50, 3), dtype=np.uint64)
    key = 2**64 - 3, 2**63 + 5
    zeros = np.zeros((50, 1), np.uint64)
    numpys = [
        np.random.Philox(key=np.array(key, np.uint64), counter=counter).random_raw(4)
        for counter in np.hstack([zeros, words])
    ]
    # NumPy counts before it draws.
    counters = np.hstack([zeros + np.uint64(1), words])
    np.testing.assert_array_equal(philox(counters.T, key), numpys)


def test_a_box_that_does_not_fit_is_drawn_again() -> None:
    """A picture ten times as wide as high: hardly any first box fits."""
    draws = Draws(AugmentSpec(crop="inception"), places(0, list(range(200))), seed=3)
    boxes = [draws.params(index, (20, 200), (16, 16)).box for index in range(200)]
    centred = centre_box((20, 200), (16, 16))
    assert 0 < sum(box == centred for box in boxes) < 120


def test_the_centre_box_has_the_inputs_aspect() -> None:
    assert centre_box((100, 300), (50, 50)) == (100, 0, 200, 100)
    assert centre_box((300, 100), (50, 100)) == (0, 125, 100, 175)
    assert centre_box((1, 7), (50, 100)) == (2, 0, 4, 1)


def resized(pixels: Pixels, box: tuple[int, int, int, int], *, mirror: bool = False) -> Pixels:
    out = np.empty((16, 16, 3), np.uint8)
    resize(pixels, box, out, mirror=mirror)
    return out


def applied(data: bytes, drawn: Drawn) -> Pixels:
    out = np.empty((16, 16, 3), np.uint8)
    apply(data, drawn, out)
    return out


@pytest.mark.parametrize("side", [16, 24])
def test_shift_repeats_the_border_and_mirror_turns_left_and_right(side: int) -> None:
    data = encode(picture(0, 1, height=side, width=side), "PNG")
    whole = (0, 0, side, side)
    plain = applied(data, Drawn(whole))
    np.testing.assert_array_equal(plain, resized(decode(data), whole))
    shifted = applied(data, Drawn(whole, shift_hw=(2, -1)))
    np.testing.assert_array_equal(shifted[2:, :-1], plain[:-2, 1:])
    np.testing.assert_array_equal(shifted[0], shifted[2])
    mirrored = applied(data, Drawn(whole, mirror=True))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    both = applied(data, Drawn(whole, shift_hw=(2, -1), mirror=True))
    np.testing.assert_array_equal(both, shifted[:, ::-1])


def test_erasing_turns_a_rectangle_grey_and_nothing_else() -> None:
    data = encode(picture(1, 1, height=16, width=16), "PNG")
    whole = (0, 0, 16, 16)
    plain, erased = applied(data, Drawn(whole)), applied(data, Drawn(whole, erased=(2, 3, 7, 9)))
    assert (erased[3:9, 2:7] == 128).all()
    erased[3:9, 2:7] = plain[3:9, 2:7]
    np.testing.assert_array_equal(erased, plain)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_operation_changes_a_picture_the_same_way_each_time(name: str) -> None:
    plain = picture(2, 5, height=40, width=32)
    once, again = plain.copy(), plain.copy()
    alter(once, (), [(name, 10.0)])
    alter(again, (), [(name, 10.0)])
    np.testing.assert_array_equal(once, again)
    assert np.array_equal(once, plain) == (name in ("identity",))


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "posterize", "solarize"])
def test_tables_are_those_of_the_general_codec(name: str) -> None:
    plain = picture(1, 8, height=40, width=32) // 2 + 30
    changed = plain.copy()
    alter(changed, (), [(name, 5.0)])
    image = Image.fromarray(plain)
    expected = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 6),
        "solarize": lambda: ImageOps.solarize(image, 128),
    }[name]()
    assert np.abs(changed.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    "name", ["rotate", "shear_x", "shear_y", "move_x", "move_y", "colour", "contrast", "sharpness"]
)
def test_an_operation_of_no_strength_leaves_a_picture_as_it_is(name: str) -> None:
    plain = picture(2, 5, height=40, width=32)
    changed = plain.copy()
    alter(changed, (), [(name, 0.0)])
    np.testing.assert_array_equal(changed, plain)


def test_moves_and_shears_go_where_their_sign_says() -> None:
    plain = picture(0, 3, height=40, width=40)
    moved = plain.copy()
    alter(moved, (), [("move_x", 10.0)])
    np.testing.assert_array_equal(moved[:, :22], plain[:, 18:])
    assert (moved[:, 23:] == 128).all()
    alter(moved, (), [("identity", 10.0)])
    sheared = plain.copy()
    alter(sheared, (), [("shear_y", -10.0)])
    assert np.abs(sheared[:, 20].astype(int) - plain[:, 20]).mean() < 3, "its middle stays"


def test_jitter_follows_its_factors() -> None:
    plain = picture(0, 9, height=20, width=20)
    same, dark, turned = plain.copy(), plain.copy(), plain.copy()
    alter(same, (1.0, 1.0, 1.0, 0.0), ())
    np.testing.assert_array_equal(same, plain)
    alter(dark, (0.5, 1.0, 1.0, 0.0), ())
    np.testing.assert_allclose(dark, plain * 0.5, atol=1)
    alter(turned, (1.0, 1.0, 1.0, 1 / 3), ())
    np.testing.assert_allclose(turned, np.roll(plain, 1, axis=2), atol=8)
