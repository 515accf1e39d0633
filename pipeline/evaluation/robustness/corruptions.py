"""Common corruptions of one image at severities 1 to 5 (Hendrycks & Dietterich 2019).

Strengths are those of `imagecorruptions` 1.1.2 (Michaelis et al. 2019, Apache-2.0), made for images
of 224 px: lengths are in pixels and are not scaled with the size. Where that package draws from a
global generator, these draw from the one they are given. `frost` and `spatter` are absent.

Axes: H W pixels, C channels.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy import ndimage  # type: ignore[import-untyped]  # SciPy ships no types

from pipeline.data.images.codec import decode_jpeg, encode
from pipeline.evaluation.robustness import blurs, weather
from schemas.robustness import CorruptionName

SMALLEST_SIDE_PX = 32
"""Smaller images are refused by the published implementation too: nothing is left of them."""
Unit = Float[np.ndarray, "H W C"]
"""An image with values from 0 to 1, float64."""
_HIGHEST = 255.0


def corrupt(
    pixels_HWC: UInt8[np.ndarray, "H W C"],
    name: CorruptionName,
    severity: int,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "H W C"]:
    """The image with a corruption of a severity from 1 to 5; fixed by the generator's state.

    Raises:
        ValueError: If the image has a side below `SMALLEST_SIDE_PX`.
    """
    if min(pixels_HWC.shape[:2]) < SMALLEST_SIDE_PX:
        raise ValueError(f"corruptions need images of at least {SMALLEST_SIDE_PX} px a side")
    if name == "jpeg_compression":
        return _jpeg(pixels_HWC, severity)
    found = _CORRUPTIONS[name](pixels_HWC / _HIGHEST, severity, rng)
    # Published figures are of values cut to whole numbers, not rounded.
    bytes_HWC: np.ndarray = (np.clip(found, 0.0, 1.0) * _HIGHEST).astype(np.uint8)
    return bytes_HWC


def _gaussian_noise(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    spread = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + rng.normal(scale=spread, size=image.shape)


def _shot_noise(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(image * photons) / float(photons)


def _impulse_noise(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit = rng.random(image.shape) <= share
    return np.where(hit, rng.random(image.shape) <= 0.5, image)


def _speckle_noise(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    spread = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return image + image * rng.normal(scale=spread, size=image.shape)


def _contrast(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    left = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = image.mean(axis=(0, 1))
    paler: np.ndarray = mean + left * (image - mean)
    return paler


def _brightness(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    hsv = rgb_to_hsv(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + more, 0.0, 1.0)
    changed: np.ndarray = hsv_to_rgb(hsv)
    return changed


def _saturate(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    factor, more = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = np.clip(factor * hsv[..., 1] + more, 0.0, 1.0)
    changed: np.ndarray = hsv_to_rgb(hsv)
    return changed


def _pixelate(image: Unit, severity: int, rng: np.random.Generator) -> Unit:  # noqa: ARG001
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    down, across = (_box_means(side, int(side * share)) for side in image.shape[:2])
    means = across @ np.tensordot(down, image, axes=1)
    means = np.round(means * _HIGHEST) / _HIGHEST
    rows, columns = (
        (np.arange(side) + 0.5) * count // side
        for side, count in zip(image.shape[:2], means.shape[:2], strict=True)
    )
    coarse: np.ndarray = means[rows.astype(int)[:, None], columns.astype(int)]
    return coarse


def _box_means(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Weights of whole pixels whose centres lie in the box of each target pixel."""
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale
    away = np.abs(np.arange(source) + 0.5 - centre[:, None])
    weights = (away <= scale / 2).astype(float)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _elastic_transform(image: Unit, severity: int, rng: np.random.Generator) -> Unit:
    strength = (12.5, 16.25, 21.25, 25.0, 30.0)[severity - 1]
    height, width, _ = image.shape
    sigma = (0.01 * height, 0.01 * width)
    reach = 0.005 * height

    def bend() -> Float[np.ndarray, "H W"]:
        drawn = rng.uniform(-reach, reach, size=(height, width))
        smooth: np.ndarray = ndimage.gaussian_filter(drawn, sigma, mode="reflect", truncate=3)
        return strength * smooth

    sideways, upright = bend(), bend()
    rows, columns = np.mgrid[:height, :width]
    where = np.stack([rows + upright, columns + sideways])
    bent = [
        ndimage.map_coordinates(channel, where, order=1, mode="reflect")
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(bent, axis=-1)


def _jpeg(pixels_HWC: UInt8[np.ndarray, "H W C"], severity: int) -> UInt8[np.ndarray, "H W C"]:
    quality = (25, 18, 15, 10, 7)[severity - 1]
    return decode_jpeg(encode(pixels_HWC, "jpeg", quality=quality))


_CORRUPTIONS: Mapping[str, Callable[[Unit, int, np.random.Generator], Unit]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": blurs.defocus,
    "glass_blur": blurs.glass,
    "motion_blur": blurs.motion,
    "zoom_blur": blurs.zoom,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": blurs.gaussian,
    "saturate": _saturate,
}
