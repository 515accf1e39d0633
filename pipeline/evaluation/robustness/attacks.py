"""Changes of pixels that follow a model's gradient: within a bound, or within a square patch.

Values are float32 from 0 to 255. A gradient comes from the caller as a function of values.

Axes: B batch, H W pixels, C channels, S side of a patch.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Integer, UInt8
from torch import Tensor

from pipeline.evaluation.robustness.draws import generator
from schemas.robustness import LARGEST_VALUE

Values = Float32[Tensor, "B H W C"]
Patches = Float32[Tensor, "B S S C"]
Gradient = Callable[[Values], Values]


def bounds(values_BHWC: Values, eps: float) -> tuple[Values, Values]:
    """The lowest and highest float32 values within `eps` of each, and within 0 and 255.

    Exact: the distance to either end, computed without rounding, is never above `eps`.
    """
    exact = values_BHWC.double()
    ends = []
    for sign in (-1.0, 1.0):
        end = (exact + sign * eps).clamp(0.0, LARGEST_VALUE).float()
        inward = torch.nextafter(end, values_BHWC)
        ends.append(torch.where((end.double() - exact).abs() > eps, inward, end))
    return ends[0], ends[1]


def fgsm(values_BHWC: Values, gradient_BHWC: Values, eps: float) -> Values:
    """One step of `eps` up the sign of the gradient (Goodfellow et al. 2015)."""
    low, high = bounds(values_BHWC, eps)
    return (values_BHWC + eps * gradient_BHWC.sign()).clamp(low, high)


def pgd(
    values_BHWC: Values, gradient: Gradient, *, start_BHWC: Values, eps: float, steps: int,
    step: float,
) -> Values:  # fmt: skip
    """Steps up the sign of the gradient, each projected to the bound (Madry et al. 2018).

    Args:
        values_BHWC: The images.
        gradient: Of the loss.
        start_BHWC: Where to begin, relative to the images: -1 to 1, in units of `eps`.
        eps: The bound.
        steps: How many.
        step: Length of each.
    """
    low, high = bounds(values_BHWC, eps)
    moved = (values_BHWC + eps * start_BHWC).clamp(low, high)
    for _ in range(steps):
        moved = (moved + step * gradient(moved).sign()).clamp(low, high)
    return moved


def random_start(
    purpose: str, seed: int, uid_B: UInt8[np.ndarray, "B 16"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "B ..."]:
    """Even numbers from -1 to 1 of `shape` for each image."""
    drawn = [
        generator(purpose, seed, uid.tobytes()).uniform(-1, 1, shape).astype(np.float32)
        for uid in uid_B
    ]
    return np.stack(drawn)


def corners(
    purpose: str,
    seed: int,
    uid_B: UInt8[np.ndarray, "B 16"],
    *,
    image_px: tuple[int, int],
    side: int,
) -> Integer[np.ndarray, "B 2"]:
    """Where a patch of `side` pixels lies in each image: top and left, anywhere inside."""
    ends = [length - side + 1 for length in image_px]
    drawn = [generator(purpose, seed, uid.tobytes()).integers(0, ends) for uid in uid_B]
    return np.stack(drawn)


def paste(
    values_BHWC: Values, patches_BSSC: Patches, corner_B2: Integer[np.ndarray, "B 2"]
) -> Values:
    """Images with a patch each; every pixel outside is as it was."""
    pasted, side = values_BHWC.clone(), patches_BSSC.shape[1]
    for index, (top, left) in enumerate(corner_B2.tolist()):
        pasted[index, top : top + side, left : left + side] = patches_BSSC[index]
    return pasted


def cut_out(values_BHWC: Values, corner_B2: Integer[np.ndarray, "B 2"], side: int) -> Patches:
    """What `paste` would cover."""
    parts = [
        image[top : top + side, left : left + side]
        for image, (top, left) in zip(values_BHWC, corner_B2.tolist(), strict=True)
    ]
    return torch.stack(parts)


def patch_attack(
    values_BHWC: Values,
    gradient: Gradient,
    *,
    patches_BSSC: Patches,
    corner_B2: Integer[np.ndarray, "B 2"],
    steps: int,
    step: float,
) -> Values:
    """Patches that follow the sign of the gradient, each in its own image, bound to 0 to 255."""
    side = patches_BSSC.shape[1]
    pasted = paste(values_BHWC, patches_BSSC, corner_B2)
    for _ in range(steps):
        rise = cut_out(gradient(pasted), corner_B2, side).sign()
        patches_BSSC = (patches_BSSC + step * rise).clamp(0.0, LARGEST_VALUE)
        pasted = paste(pasted, patches_BSSC, corner_B2)
    return pasted


def noise_patch(start: Float32[np.ndarray, "..."]) -> Float32[Tensor, "..."]:
    """Even numbers from -1 to 1 as values from 0 to 255."""
    return torch.from_numpy((start + 1.0) * (LARGEST_VALUE / 2))
