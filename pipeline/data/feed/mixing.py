"""How neighbours in a global batch are mixed: mixup (Zhang et al. 2017), CutMix (Yun et al. 2019).

Samples 2i and 2i+1 of the global batch are partners. What is drawn for a pair is a pure function of
(seed, step, i), so it is the same for any world size and any micro-batch of even size.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv  # type: ignore[import-untyped]  # SciPy ships no types

from pipeline.data.feed.augment import uniforms
from pipeline.data.feed.course import Places
from pipeline.data.order import Int64s
from schemas.samples import AugmentSpec


@dataclass(frozen=True)
class Mix:
    """What each sample of a batch keeps of itself; the rest comes from its partner, `index ^ 1`."""

    keep_B: NDArray[np.float32]  # noqa: N815 - arrays carry their axes in their names
    """Share of the sample's own label."""
    box_B4: Int64s  # noqa: N815
    """Left, top, right, bottom of the partner's rectangle, in pixels; empty for mixup."""

    def part(self, start: int, stop: int) -> "Mix":
        """That of some consecutive samples, from an even one."""
        return Mix(self.keep_B[start:stop], self.box_B4[start:stop])


def draw_mix(
    augment: AugmentSpec,
    pairs: Int64s,
    *,
    seed: int,
    step: int,
    image_px: tuple[int, int],
) -> Mix | None:
    """The mix of some pairs of one step, None where the spec mixes nothing.

    Args:
        augment: Says how.
        pairs: Indices of pairs in the global batch.
        seed: Of the experiment.
        step: Optimizer step of the run, from 0.
        image_px: Height and width of the model's input.
    """
    if not augment.mixes:
        return None
    places = Places(np.zeros_like(pairs), np.full_like(pairs, step), pairs)
    choice, share, down, right = uniforms("mix", seed, places, count=4).T
    odds = 0.5 if augment.mixup_alpha and augment.cutmix_alpha else float(augment.cutmix_alpha > 0)
    cuts = choice < odds
    keep = np.where(cuts, _beta(augment.cutmix_alpha, share), _beta(augment.mixup_alpha, share))
    boxes = np.zeros((len(pairs), 4), np.int64)
    for index in np.flatnonzero(cuts):
        centre = float(down[index]), float(right[index])
        boxes[index] = box = _box(1 - float(keep[index]), centre, image_px)
        # The rectangle may reach beyond the border: what counts is what is seen of it.
        area = (box[2] - box[0]) * (box[3] - box[1])
        keep[index] = 1 - area / math.prod(image_px)
    return Mix(np.repeat(keep.astype(np.float32), 2), np.repeat(boxes, 2, axis=0))


def _beta(alpha: float, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers from Beta(alpha, alpha), in steps of 2^-16: last bits of libraries do not show."""
    if not alpha:
        return np.ones_like(uniform)
    drawn: NDArray[np.float64] = np.rint(betaincinv(alpha, alpha, uniform) * 2.0**16) / 2.0**16
    return drawn


def _box(
    area_ratio: float, centre: tuple[float, float], image_px: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A rectangle of the input's aspect around a point, cut off at the border."""
    scale = math.sqrt(area_ratio)
    (top, bottom), (left, right) = (
        (
            max(0, math.floor(middle * side) - int(side * scale) // 2),
            min(side, math.floor(middle * side) + (int(side * scale) + 1) // 2),
        )
        for middle, side in zip(centre, image_px, strict=True)
    )
    return left, top, right, bottom
