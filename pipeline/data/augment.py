"""What happens to a training image: drawn from counters, so any process draws the same.

A draw is a pure function of (seed, epoch, position, purpose) and of the sizes; no generator is
advanced, so order of work, number of workers and interruptions change nothing.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Box, Pixels, render
from schemas.training import AugmentSpec

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class CropParams:
    """One drawn augmentation."""

    box: Box
    """Part of the stored image that is resized to the input, in its pixels."""
    shift_hw: tuple[int, int] = (0, 0)
    """Rows and columns by which the resized image moves; its border is repeated."""
    mirror: bool = False


def draw(
    augment: AugmentSpec,
    *,
    seed: int,
    epoch: int,
    position: int,
    orig_hw: tuple[int, int],
    out_hw: tuple[int, int],
) -> CropParams:
    """The augmentation of one position of one epoch.

    Args:
        augment: Which augmentations there are.
        seed: Of the experiment.
        epoch: Pass over the data, from 0.
        position: Of the sample in the epoch, as it is after removed rows are left out.
        orig_hw: Height and width of the stored image.
        out_hw: Height and width of the model's input.
    """
    mirror = augment.flip and uniforms("flip", seed, epoch, position, count=1)[0] < 0.5
    if augment.crop == "inception":
        numbers = uniforms("inception", seed, epoch, position, count=4 * _TRIES)
        box = _inception_box(numbers, augment.min_area_ratio, orig_hw)
        return CropParams(box or centre_box(orig_hw, out_hw), mirror=bool(mirror))
    shift = (0, 0)
    if augment.crop == "shift":
        down, right = uniforms("shift", seed, epoch, position, count=2)
        shift = (
            _whole_shift(down, augment.shift_ratio * out_hw[0]),
            _whole_shift(right, augment.shift_ratio * out_hw[1]),
        )
    return CropParams(centre_box(orig_hw, out_hw), shift_hw=shift, mirror=bool(mirror))


def apply(data: bytes, params: CropParams, out_hw: tuple[int, int]) -> Pixels:
    """Decode stored bytes and do what was drawn -> pixels_HWC of `out_hw`."""
    pixels = render(data, params.box, out_hw)
    if params.shift_hw != (0, 0):
        rows = np.clip(np.arange(out_hw[0]) - params.shift_hw[0], 0, out_hw[0] - 1)
        columns = np.clip(np.arange(out_hw[1]) - params.shift_hw[1], 0, out_hw[1] - 1)
        pixels = pixels[rows[:, None], columns[None, :]]
    return pixels[:, ::-1] if params.mirror else pixels


def centre_box(orig_hw: tuple[int, int], out_hw: tuple[int, int]) -> Box:
    """The largest centred box with the input's aspect: short side resized, then centre crop."""
    height, width = orig_hw
    scale = min(height / out_hw[0], width / out_hw[1])
    box_height, box_width = out_hw[0] * scale, out_hw[1] * scale
    top, left = (height - box_height) / 2, (width - box_width) / 2
    # Rounding must not lead outside the image by a last bit.
    return (
        max(left, 0.0),
        max(top, 0.0),
        min(left + box_width, float(width)),
        min(top + box_height, float(height)),
    )


def uniforms(
    purpose: str, seed: int, epoch: int, position: int, *, count: int
) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), fixed by the arguments.

    Raw output of the Philox counter generator, which is the same in every release of NumPy.
    """
    key = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=16).digest()
    generator = np.random.Philox(
        key=np.frombuffer(key, "<u8").astype(np.uint64),
        # The lowest word counts the draws; the generator itself would step it.
        counter=np.array([0, 0, position, epoch], np.uint64),
    )
    return np.asarray((generator.random_raw(count) >> np.uint64(11)) * 2.0**-53, np.float64)


def _whole_shift(uniform: float, largest: float) -> int:
    """A whole number of pixels in [-largest, largest], each equally likely."""
    steps = math.floor(largest)
    return min(math.floor(uniform * (2 * steps + 1)), 2 * steps) - steps


def _inception_box(
    numbers: NDArray[np.float64], min_area_ratio: float, orig_hw: tuple[int, int]
) -> Box | None:
    """The first of ten random boxes that fits (Szegedy et al. 2015, as torchvision draws it)."""
    height, width = orig_hw
    for area, aspect, down, right in numbers.reshape(_TRIES, 4):
        target = height * width * (min_area_ratio + area * (1 - min_area_ratio))
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        box_height, box_width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = math.floor(down * (height - box_height + 1))
            left = math.floor(right * (width - box_width + 1))
            return (float(left), float(top), float(left + box_width), float(top + box_height))
    return None
