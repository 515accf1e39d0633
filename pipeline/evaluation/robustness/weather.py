"""Snow and fog among the common corruptions; values from 0 to 1, strengths as `corruptions` says.

Axes: H W pixels, C channels, S a side that is a power of two.
"""

import numpy as np
from jaxtyping import Float

from pipeline.evaluation.robustness.blurs import enlarged, moved

Unit = Float[np.ndarray, "H W C"]
_LUMA = np.array([0.299, 0.587, 0.114])
_FIRST_WOBBLE = 100.0


def snow(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    """Flakes driven by wind, over a paler image."""
    mean, spread, size, least, radius, sigma, left = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width, _ = image.shape
    flakes = enlarged(rng.normal(mean, spread, size=(height, width, 1)), size)[..., 0]
    flakes = np.clip(np.where(flakes < least, 0.0, flakes), 0.0, 1.0)
    flakes = moved(flakes, radius=radius, sigma=sigma, degrees=rng.uniform(-135, -45))
    fallen = np.zeros((height, width))
    shown = (np.round(flakes * 255.0) / 255.0)[:height, :width]
    fallen[: shown.shape[0], : shown.shape[1]] = shown + np.rot90(shown, 2)
    grey = (image @ _LUMA)[..., None]
    paler = left * image + (1 - left) * np.maximum(image, 1.5 * grey + 0.5)
    covered: np.ndarray = paler + fallen[..., None]
    return covered


def fog(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    """A bright cloud, so that contrast goes."""
    thickness, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width, _ = image.shape
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, rng)[:height, :width]
    brightest = image.max()
    dimmed: np.ndarray = (image + thickness * cloud[..., None]) * brightest
    dimmed /= brightest + thickness
    return dimmed


def plasma(side: int, decay: float, rng: np.random.Generator) -> Float[np.ndarray, "S S"]:
    """A random height map from 0 to 1 on a torus, by midpoints (diamond-square).

    Each halving of the mesh divides the random part by `decay` squared.
    """
    heights, mesh, wobble = np.zeros((side, side)), side, _FIRST_WOBBLE

    def wobbly(corners: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = rng.uniform(-(wobble**2), wobble**2, corners.shape)
        return np.asarray(corners / 4 + drawn)

    while mesh >= 2:
        half = mesh // 2
        corners = heights[::mesh, ::mesh]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::mesh, half::mesh] = wobbly(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::mesh, half::mesh]
        beside = corners + np.roll(corners, -1, axis=1)
        heights[::mesh, half::mesh] = wobbly(centres + np.roll(centres, 1, axis=0) + beside)
        below = corners + np.roll(corners, -1, axis=0)
        heights[half::mesh, ::mesh] = wobbly(centres + np.roll(centres, 1, axis=1) + below)
        mesh, wobble = half, wobble / decay
    heights -= heights.min()
    scaled: np.ndarray = heights / heights.max()
    return scaled
