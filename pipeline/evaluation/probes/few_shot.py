"""Few-shot regularised least squares in closed form, as the ViT paper evaluates representations.

Source: Dosovitskiy et al. 2020, section 4.1, and the authors' own evaluator, `fewshot_lsr.py` of
big_vision, whose constants these are. Ours computes in float64, theirs in float32.
Axes: N training images, M measured ones, D features, E features and the bias, K classes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

BIAS_FEATURE = 100.0
"""Constant feature beside the others: so large that the bias is almost free of the penalty."""
MIN_STD = 1e-5
"""Added to the spread of each feature."""


@dataclass(frozen=True)
class LeastSquares:
    """A linear classifier of whitened features."""

    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]
    weights: Float[np.ndarray, "E K"]
    """Of the whitened features, and last of the bias feature."""

    def predict(self, features_MD: Float[np.ndarray, "M D"]) -> Integer[np.ndarray, " M"]:
        """The class of the largest score of each image; the first one of a tie."""
        scores_MK = _whitened(features_MD, self.mean, self.std) @ self.weights
        return np.asarray(scores_MK.argmax(axis=1))


def fit(
    features_ND: Float[np.ndarray, "N D"],
    label_N: Integer[np.ndarray, " N"],
    *,
    num_classes: int,
    l2: float,
) -> LeastSquares:
    """The weights W that minimise |X W - Y|^2 + l2 |W|^2.

    X are the features, whitened by their mean and spread, with the bias feature; Y is 1 for an
    image's class and -1 for every other. By the eigenvectors of X'X where N >= E, of XX' otherwise:
    N E min(N, E) + min(N, E)^3 multiplications, 8 bytes x (2 N E + min(N, E)^2).
    """
    wide_ND = features_ND.astype(np.float64)
    mean_D, std_D = wide_ND.mean(axis=0), wide_ND.std(axis=0) + MIN_STD
    x_NE = _whitened(wide_ND, mean_D, std_D)
    target_NK = np.where(label_N[:, None] == np.arange(num_classes), 1.0, -1.0)
    if x_NE.shape[0] >= x_NE.shape[1]:
        eigenvalue, vectors = np.linalg.eigh(x_NE.T @ x_NE)
        left, right = vectors, vectors.T @ (x_NE.T @ target_NK)
    else:
        eigenvalue, vectors = np.linalg.eigh(x_NE @ x_NE.T)
        left, right = x_NE.T @ vectors, vectors.T @ target_NK
    return LeastSquares(mean_D, std_D, (left / (eigenvalue + l2)) @ right)


def _whitened(
    features_ND: Float[np.ndarray, "N D"],
    mean_D: Float[np.ndarray, " D"],
    std_D: Float[np.ndarray, " D"],
) -> Float[np.ndarray, "N E"]:
    """Zero mean and unit spread, and the bias feature behind them."""
    whitened_ND = (features_ND - mean_D) / std_D
    return np.pad(whitened_ND, ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)
