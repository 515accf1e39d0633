"""Golden values: a change makes runs in progress see other pixels than those they began with."""

from typing import Any

import numpy as np

from pipeline.data.feed.augment import Drawn, Draws
from pipeline.data.feed.mixing import draw_mix
from schemas.samples import AugmentSpec, ColourJitterSpec, RandAugmentSpec
from tests.support.loading import places

SIZES = {0: (48, 64), 1: (100, 60), 2**40: (8, 8)}
"""Position -> height and width of the stored image."""
CENTRES = [(0, 2, 64, 45), (0, 30, 60, 70), (0, 1, 8, 6)]


def drawn(crop: Any, epoch: int, *, flip: bool) -> list[Drawn]:
    augment = AugmentSpec(crop=crop, flip=flip)
    draws = Draws(augment, places(epoch, list(SIZES)), seed=7)
    return [draws.params(i, size, (16, 24)) for i, size in enumerate(SIZES.values())]


def test_inception_crops_do_not_drift() -> None:
    assert drawn("inception", 0, flip=True) == [
        Drawn((5, 20, 27, 48), mirror=True),
        Drawn((2, 1, 60, 51)),
        Drawn((0, 2, 5, 8)),
    ]
    assert drawn("inception", 2, flip=True) == [
        Drawn((13, 1, 56, 39), mirror=True),
        Drawn((1, 4, 31, 30), mirror=True),
        Drawn((0, 1, 5, 5)),
    ]


def test_shifts_do_not_drift() -> None:
    shifts = [(1, -1), (0, -1), (-1, -2)]
    mirrors = [True, True, False]
    assert drawn("shift", 2, flip=True) == [
        Drawn(*facts) for facts in zip(CENTRES, shifts, mirrors, strict=True)
    ]
    assert drawn("shift", 2, flip=False) == [
        Drawn(*facts) for facts in zip(CENTRES, shifts, strict=True)
    ]


def test_no_augmentation_is_the_centre() -> None:
    assert drawn("none", 2, flip=False) == [Drawn(box) for box in CENTRES]


def test_colours_operations_and_erasing_do_not_drift() -> None:
    augment = AugmentSpec(
        colour_jitter=ColourJitterSpec(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        randaugment=RandAugmentSpec(layers=2, magnitude=9),
        erase_ratio=1.0,
    )
    drawn = Draws(augment, places(1, [5]), seed=7).params(0, (40, 40), (16, 24))
    assert [round(factor, 9) for factor in drawn.jitter] == [
        1.175135917,
        1.367501018,
        0.887904663,
        0.019740753,
    ]
    assert drawn.operations == (("rotate", 9.0), ("move_y", -9.0))
    assert drawn.erased == (5, 0, 10, 16)


def test_mixing_does_not_drift() -> None:
    augment = AugmentSpec(mixup_alpha=0.2, cutmix_alpha=1.0)
    mix = draw_mix(augment, np.arange(3), seed=1, step=5, image_px=(20, 30))
    assert mix is not None
    assert mix.keep_B[::2].tolist() == [0.4901275634765625, 0.01885986328125, 0.910430908203125]
    assert mix.box_B4[::2].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
