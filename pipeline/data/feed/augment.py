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
from numpy.typing import NDArray

from pipeline.data.feed.course import Places
from pipeline.data.feed.philox import WORDS, philox
from pipeline.data.images.alter import OPERATIONS, Operation, alter, erase
from pipeline.data.images.codec import Box, Pixels
from pipeline.data.images.render import render
from schemas.samples import AugmentSpec

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)
_NUMBERS = {"none": 0, "inception": 4 * _TRIES, "shift": 2}
"""Numbers that each kind of crop takes."""
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 3.3)
_OPERATIONS = tuple(OPERATIONS)


@dataclass(frozen=True)
class Drawn:
    """One drawn augmentation."""

    box: Box
    """Part of the stored image that is resized to the input, in its pixels."""
    shift_hw: tuple[int, int] = (0, 0)
    """Rows and columns by which the resized image moves; its border is repeated."""
    mirror: bool = False
    jitter: tuple[float, ...] = ()
    """Factors of brightness, contrast and saturation, and a turn of hue; or nothing."""
    operations: tuple[Operation, ...] = ()
    erased: Box | None = None


class Draws:
    """The random numbers of some samples; what they mean depends on the sizes."""

    def __init__(self, augment: AugmentSpec, places: Places, *, seed: int) -> None:
        """Draw.

        Args:
            augment: Which augmentations there are.
            places: The samples; a position counts as it is after removed rows are left out.
            seed: Of the experiment.
        """

        def drawn(purpose: str, count: int) -> NDArray[np.float64]:
            return uniforms(purpose, seed, places, count=count)

        self._augment = augment
        layers = augment.randaugment.layers if augment.randaugment else 0
        self._mirrors: NDArray[np.bool_] = np.any(drawn("flip", int(augment.flip)) < 0.5, axis=1)
        self._crops = drawn(augment.crop, _NUMBERS[augment.crop])
        self._jitters = drawn("jitter", 4 if augment.colour_jitter else 0)
        self._layers = drawn("randaugment", 2 * layers)
        self._erased = drawn("erase", 5 if augment.erase_ratio else 0)

    def params(self, index: int, orig_hw: tuple[int, int], out_hw: tuple[int, int]) -> Drawn:
        """The augmentation of the sample `index` of the places.

        Args:
            index: Among the places.
            orig_hw: Height and width of the stored image.
            out_hw: Height and width of the model's input.
        """
        augment, numbers = self._augment, self._crops[index].tolist()
        box, shift = None, (0, 0)
        if augment.crop == "inception":
            box = _inception_box(numbers, augment.min_area_ratio, orig_hw)
        elif augment.crop == "shift":
            shift = (
                _whole_shift(numbers[0], augment.shift_ratio * out_hw[0]),
                _whole_shift(numbers[1], augment.shift_ratio * out_hw[1]),
            )
        return Drawn(
            box or centre_box(orig_hw, out_hw),
            shift_hw=shift,
            mirror=bool(self._mirrors[index]),
            jitter=self._jitter(index),
            operations=self._operations(index),
            erased=self._erased_box(index, out_hw),
        )

    def _jitter(self, index: int) -> tuple[float, ...]:
        spec = self._augment.colour_jitter
        if spec is None:
            return ()
        *factors, hue = self._jitters[index].tolist()
        ranges = (spec.brightness, spec.contrast, spec.saturation)
        return (
            *(
                max(0.0, 1 - largest) + number * (1 + largest - max(0.0, 1 - largest))
                for number, largest in zip(factors, ranges, strict=True)
            ),
            (2 * hue - 1) * spec.hue,
        )

    def _operations(self, index: int) -> tuple[Operation, ...]:
        spec = self._augment.randaugment
        if spec is None:
            return ()
        pairs = self._layers[index].reshape(-1, 2).tolist()
        return tuple(
            (
                _OPERATIONS[math.floor(which * len(_OPERATIONS))],
                spec.magnitude if sign < 0.5 else -spec.magnitude,
            )
            for which, sign in pairs
        )

    def _erased_box(self, index: int, out_hw: tuple[int, int]) -> Box | None:
        ratio = self._augment.erase_ratio
        numbers = self._erased[index].tolist()
        if not numbers or numbers[0] >= ratio:
            return None
        height, width = out_hw
        _, area, aspect, down, right = numbers
        target = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
        box_hw = _sides(target, aspect, _ERASED_ASPECT)
        return _placed(min(box_hw[0], height), min(box_hw[1], width), (down, right), out_hw)


def apply(data: bytes, drawn: Drawn, out: Pixels) -> None:
    """Decode stored bytes and do what was drawn, into pixels_HWC `out`."""
    if drawn.shift_hw == (0, 0):
        render(data, drawn.box, out, mirror=drawn.mirror)
    else:
        resized = np.empty_like(out)
        render(data, drawn.box, resized)
        rows, columns = map(_moved, out.shape[:2], drawn.shift_hw)
        columns = columns[::-1] if drawn.mirror else columns
        # One axis after the other: both at once would be an index for each pixel.
        out[:] = resized.take(rows, axis=0).take(columns, axis=1)
    if drawn.jitter or drawn.operations:
        alter(out, drawn.jitter, drawn.operations)
    if drawn.erased is not None:
        erase(out, drawn.erased)


def centre_box(orig_hw: tuple[int, int], out_hw: tuple[int, int]) -> Box:
    """The largest centred box with the input's aspect: short side resized, then centre crop."""
    height, width = orig_hw
    scale = min(height / out_hw[0], width / out_hw[1])
    box_height = min(max(1, round(out_hw[0] * scale)), height)
    box_width = min(max(1, round(out_hw[1] * scale)), width)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return left, top, left + box_width, top + box_height


def uniforms(purpose: str, seed: int, places: Places, *, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each sample, fixed by the purpose, the seed and its place.

    Returns:
        An array of shape [samples, count].
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=16).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    # The lowest word of the counter counts the draws of a sample, from one on as in NumPy.
    draws = np.arange(1, -(-count // WORDS) + 1, dtype=np.uint64)
    columns = (places.source, places.position, places.epoch)
    words = (column.astype(np.uint64)[:, None] for column in columns)
    counter = np.broadcast_arrays(draws, *words)
    raw = philox(counter, key).reshape(len(places), -1)[:, :count]
    fractions: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions


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
        box_height, box_width = _sides(target, aspect, _ASPECT)
        if 0 < box_height <= height and 0 < box_width <= width:
            return _placed(box_height, box_width, (down, right), orig_hw)
    return None


def _sides(area: float, uniform: float, aspects: tuple[float, float]) -> tuple[int, int]:
    """Height and width of this area, their aspect between two, evenly by its logarithm."""
    ratio = math.exp(math.log(aspects[0]) + uniform * math.log(aspects[1] / aspects[0]))
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


def _placed(
    height: int, width: int, uniform: tuple[float, float], within_hw: tuple[int, int]
) -> Box:
    """A box anywhere in a picture."""
    top = math.floor(uniform[0] * (within_hw[0] - height + 1))
    left = math.floor(uniform[1] * (within_hw[1] - width + 1))
    return left, top, left + width, top + height
