"""What happens to a training image: drawn from counters, so any process draws the same.

A draw is a pure function of (seed, epoch, position, purpose) and of the sizes; no generator is
advanced, so order of work, number of workers and interruptions change nothing.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.images.codec import Box, Pixels
from pipeline.data.images.render import render
from pipeline.data.order import Int64s
from schemas.training import AugmentSpec

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)
_NUMBERS = {"none": 0, "inception": 4 * _TRIES, "shift": 2}
"""Numbers that each kind of crop takes."""


@dataclass(frozen=True)
class CropParams:
    """One drawn augmentation."""

    box: Box
    """Part of the stored image that is resized to the input, in its pixels."""
    shift_hw: tuple[int, int] = (0, 0)
    """Rows and columns by which the resized image moves; its border is repeated."""
    mirror: bool = False


class Draws:
    """The random numbers of some positions of one epoch; what they mean depends on the sizes."""

    def __init__(self, augment: AugmentSpec, *, seed: int, epoch: int, positions: Int64s) -> None:
        """Draw.

        Args:
            augment: Which augmentations there are.
            seed: Of the experiment.
            epoch: Pass over the data, from 0.
            positions: Of the samples in the epoch, as they are after removed rows are left out.
        """
        self._augment = augment
        crop, count = augment.crop, _NUMBERS[augment.crop]
        flips = uniforms("flip", seed, epoch, positions, count=int(augment.flip))
        self._mirrors: NDArray[np.bool_] = np.any(flips < 0.5, axis=1)
        self._numbers = uniforms(crop, seed, epoch, positions, count=count)

    def params(self, index: int, orig_hw: tuple[int, int], out_hw: tuple[int, int]) -> CropParams:
        """The augmentation of `positions[index]`.

        Args:
            index: Among the positions.
            orig_hw: Height and width of the stored image.
            out_hw: Height and width of the model's input.
        """
        augment, numbers = self._augment, self._numbers[index].tolist()
        mirror = bool(self._mirrors[index])
        if augment.crop == "inception":
            box = _inception_box(numbers, augment.min_area_ratio, orig_hw)
            return CropParams(box or centre_box(orig_hw, out_hw), mirror=mirror)
        shift = (0, 0)
        if augment.crop == "shift":
            shift = (
                _whole_shift(numbers[0], augment.shift_ratio * out_hw[0]),
                _whole_shift(numbers[1], augment.shift_ratio * out_hw[1]),
            )
        return CropParams(centre_box(orig_hw, out_hw), shift_hw=shift, mirror=mirror)


def apply(data: bytes, params: CropParams, out_hw: tuple[int, int]) -> Pixels:
    """Decode stored bytes and do what was drawn -> pixels_HWC of `out_hw`."""
    pixels = render(data, params.box, out_hw)
    if params.shift_hw != (0, 0):
        rows, columns = map(_moved, out_hw, params.shift_hw)
        pixels = pixels[rows[:, None], columns]
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
    purpose: str, seed: int, epoch: int, positions: ArrayLike, *, count: int
) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each position, fixed by the other arguments and it alone.

    Raw output of the Philox counter generator, which is the same in every release of NumPy.

    Returns:
        An array of the shape of `positions`, with an axis of `count` after it.
    """
    places = np.asarray(positions)
    raw = np.empty((places.size, count), np.uint64)
    key = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(key, "<u8").astype(np.uint64))
    # One generator, set to each position, is much cheaper than a generator for each. The lowest
    # word of the counter counts the draws; the generator itself would step it.
    state = generator.state
    counter = state["state"]["counter"]
    for index, position in enumerate(places.ravel().tolist() if count else []):
        counter[:] = 0, 0, position, epoch
        generator.state = state
        raw[index] = generator.random_raw(count)
    fractions: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions.reshape(*places.shape, count)


def _whole_shift(uniform: float, largest: float) -> int:
    """A whole number of pixels in [-largest, largest], each equally likely."""
    steps = math.floor(largest)
    return min(math.floor(uniform * (2 * steps + 1)), 2 * steps) - steps


@lru_cache(maxsize=256)
def _moved(size: int, shift: int) -> NDArray[np.intp]:
    """Which row (or column) each one comes from when all move by `shift`, the border repeated."""
    return np.clip(np.arange(size) - shift, 0, size - 1)


def _inception_box(
    numbers: Sequence[float], min_area_ratio: float, orig_hw: tuple[int, int]
) -> Box | None:
    """The first of ten random boxes that fits (Szegedy et al. 2015, as torchvision draws it)."""
    height, width = orig_hw
    for start in range(0, len(numbers), 4):
        area, aspect, down, right = numbers[start : start + 4]
        target = height * width * (min_area_ratio + area * (1 - min_area_ratio))
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        box_height, box_width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = math.floor(down * (height - box_height + 1))
            left = math.floor(right * (width - box_width + 1))
            return (float(left), float(top), float(left + box_width), float(top + box_height))
    return None
