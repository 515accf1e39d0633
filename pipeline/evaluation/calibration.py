"""Whether answers are right as often as their probabilities say.

Axes: N images, M bins.
"""

import numpy as np
from jaxtyping import Bool, Float

from schemas.evaluation import Calibration, CalibrationBin

BINS = 15
"""Of equal width, as Guo et al. 2017 and most since."""


def calibrate(
    confidence_N: Float[np.ndarray, " N"], right_N: Bool[np.ndarray, " N"], *, bins: int = BINS
) -> Calibration:
    """Expected calibration error, and the reliability diagram that it sums up.

    Bin m holds the probabilities in (m / M, (m + 1) / M], and the first one 0 too.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    images_M = np.bincount(bin_N, minlength=bins)
    confidence_M = np.bincount(bin_N, weights=confidence_N, minlength=bins)
    right_M = np.bincount(bin_N, weights=right_N.astype(np.float64), minlength=bins)
    error = np.abs(confidence_M - right_M).sum() / len(confidence_N)
    return Calibration(
        ece_ratio=min(1.0, float(error)),
        bins=tuple(
            CalibrationBin(
                low=float(edges[it]),
                high=float(edges[it + 1]),
                images=int(images_M[it]),
                confidence=float(confidence_M[it] / images_M[it]) if images_M[it] else None,
                right_ratio=float(right_M[it] / images_M[it]) if images_M[it] else None,
            )
            for it in range(bins)
        ),
    )
