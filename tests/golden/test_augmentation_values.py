"""Golden values: a change makes runs in progress see other pixels than those they began with."""

from typing import Any

import numpy as np

from pipeline.data.augment import CropParams, Draws
from schemas.training import AugmentSpec

SIZES = {0: (48, 64), 1: (100, 60), 2**40: (8, 8)}
"""Position -> height and width of the stored image."""
CENTRES = [
    (0.0, 2.666666666666668, 64.0, 45.33333333333333),
    (0.0, 30.0, 60.0, 70.0),
    (0.0, 1.3333333333333335, 8.0, 6.666666666666666),
]


def drawn(crop: Any, epoch: int, *, flip: bool) -> list[CropParams]:
    augment = AugmentSpec(crop=crop, flip=flip)
    draws = Draws(augment, seed=7, epoch=epoch, positions=np.array(list(SIZES)))
    return [draws.params(i, size, (16, 24)) for i, size in enumerate(SIZES.values())]


def test_inception_crops_do_not_drift() -> None:
    assert drawn("inception", 0, flip=True) == [
        CropParams((5.0, 20.0, 27.0, 48.0), mirror=True),
        CropParams((2.0, 1.0, 60.0, 51.0)),
        CropParams((0.0, 2.0, 5.0, 8.0)),
    ]
    assert drawn("inception", 2, flip=True) == [
        CropParams((13.0, 1.0, 56.0, 39.0), mirror=True),
        CropParams((1.0, 4.0, 31.0, 30.0), mirror=True),
        CropParams((0.0, 1.0, 5.0, 5.0)),
    ]


def test_shifts_do_not_drift() -> None:
    shifts = [(1, -1), (0, -1), (-1, -2)]
    mirrors = [True, True, False]
    assert drawn("shift", 2, flip=True) == [
        CropParams(*facts) for facts in zip(CENTRES, shifts, mirrors, strict=True)
    ]
    assert drawn("shift", 2, flip=False) == [
        CropParams(*facts) for facts in zip(CENTRES, shifts, strict=True)
    ]


def test_no_augmentation_is_the_centre() -> None:
    assert drawn("none", 2, flip=False) == [CropParams(box) for box in CENTRES]
