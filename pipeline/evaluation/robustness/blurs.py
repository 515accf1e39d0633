"""Blurs among the common corruptions; values from 0 to 1, strengths as `corruptions` says.

Axes: H W pixels, C channels.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage  # type: ignore[import-untyped]  # SciPy ships no types

Unit = Float[np.ndarray, "H W C"]


def gaussian(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    """A Gaussian of 1 to 6 pixels."""
    return _smooth(image, (1.0, 2.0, 3.0, 4.0, 6.0)[severity - 1])


def defocus(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    """A disk of 3 to 10 pixels with a soft edge."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    half, edge_half = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    disk /= disk.sum()  # before the edge is softened, as published: large disks brighten a little
    bell = np.exp(-(np.arange(-edge_half, edge_half + 1) ** 2) / (2 * edge**2))
    bell /= bell.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, bell, axis=axis, mode="mirror")
    blurred: np.ndarray = ndimage.correlate(image, disk[..., None], mode="mirror")
    return blurred


def glass(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    """Pixels that take the value of a near one, one after the other, between two Gaussians.

    Pixels are visited from the lower right. The published code means to swap two pixels, and copies
    one: its figures, and ours, are of copies.
    """
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        severity - 1
    ]
    smooth = np.floor(_smooth(image, sigma) * 255.0) / 255.0
    height, width, channels = image.shape
    rows, columns = np.mgrid[height - reach : reach : -1, width - reach : reach : -1]
    origin = np.arange(height * width).tolist()
    for _ in range(rounds):
        shift = rng.integers(-reach, reach, size=(2, *rows.shape))
        targets = (rows * width + columns).ravel().tolist()
        sources = ((rows + shift[0]) * width + columns + shift[1]).ravel().tolist()
        for target, source in zip(targets, sources, strict=True):
            origin[target] = origin[source]
    moved = smooth.reshape(-1, channels)[origin].reshape(image.shape)
    return _smooth(moved, sigma)


def motion(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    """A movement of 10 to 20 pixels, within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return moved(image, radius=radius, sigma=sigma, degrees=rng.uniform(-45, 45))


def moved(image: np.ndarray, *, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Copies of [H, W, ...] along a line, each fainter; what leaves an edge repeats the edge."""
    steps = 2 * radius + 1
    weights = np.exp(-(np.arange(steps) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    blurred = np.zeros_like(image)
    for step, weight in enumerate(weights):
        down = -math.ceil(step * math.sin(angle) - 0.5)
        right = -math.ceil(step * math.cos(angle) - 0.5)
        if abs(down) >= image.shape[0] or abs(right) >= image.shape[1]:
            break
        rows = np.clip(np.arange(image.shape[0]) - down, 0, image.shape[0] - 1)
        columns = np.clip(np.arange(image.shape[1]) - right, 0, image.shape[1] - 1)
        blurred += weight * image[rows[:, None], columns]
    return blurred


def zoom(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    """The mean of the image and of enlargements of it, up to 1.11 to 1.3 times."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1.0, end, step)
    height, width, _ = image.shape
    total = image.copy()
    for factor in factors:
        larger = enlarged(image, float(factor))[:height, :width]
        total[: larger.shape[0], : larger.shape[1]] += larger
    mean: np.ndarray = total / (len(factors) + 1)
    return mean


def enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of [H, W, C], enlarged to about the old size."""
    cut = [math.ceil(side / factor) for side in image.shape[:2]]
    top, left = ((side - kept) // 2 for side, kept in zip(image.shape[:2], cut, strict=True))
    middle = image[top : top + cut[0], left : left + cut[1]]
    larger: np.ndarray = ndimage.zoom(middle, (factor, factor, 1), order=1)
    return larger


def _smooth(image: Unit, sigma: float) -> Unit:
    smooth: np.ndarray = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    return smooth
