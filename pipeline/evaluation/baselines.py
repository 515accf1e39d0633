"""Simple methods on raw pixels: what a model has to be compared with.

Both see the training split's pixels and labels and the test split's pixels, never its labels.
Axes: N training images, M test images, P chunk of test images, K classes, F features (pixels times
channels), D dimensions after rotation.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit
from schemas.errors import DataError
from schemas.evaluation import Method

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse strengths of the L2 penalty that are tried, for standardised pixels."""
FALLBACK_C = 1.0
"""Taken where a class has a single training image, so that none can be held out."""
_MAX_FOLDS = 5
_MAX_ITERATIONS = 1000
_CHUNK_IMAGES = 512


@dataclass(frozen=True)
class Answers:
    """The predicted class of every test image, and what was chosen on the training labels."""

    predicted: Integer[np.ndarray, " M"]
    chosen: dict[str, float] = field(default_factory=dict)


def load_pixels(
    split: AnySplit, *, image_px: int, threads: int
) -> tuple[UInt8[np.ndarray, "N F"], Integer[np.ndarray, " N"]]:
    """All images of a split, resized to a square as for evaluation, one row each; and the labels.

    Needs images x image_px^2 x 3 bytes of memory.

    Raises:
        DataError: If the split is empty.
    """
    if split.num_rows == 0:
        raise DataError(f"split {split.name!r} has no images; a baseline needs train and test")
    pixels, labels = [], []
    for batch in eval_batches(
        split, image_px=(image_px, image_px), batch_samples=_CHUNK_IMAGES, threads=threads
    ):
        pixels.append(batch.pixels_BHWC.reshape(len(batch), -1))
        labels.append(batch.label_B)
    return np.concatenate(pixels), np.concatenate(labels)


def answer(
    method: Method,
    train_NF: UInt8[np.ndarray, "N F"],
    *,
    label_N: Integer[np.ndarray, " N"],
    test_MF: UInt8[np.ndarray, "M F"],
    seed: int,
) -> Answers:
    """What `method`, learned from the training images, says of the test images."""
    if method == "nearest_neighbour":
        return nearest_neighbour(train_NF, label_N, test_MF)
    return logistic_regression(train_NF, label_N, test_MF, seed=seed)


def nearest_neighbour(
    train_NF: UInt8[np.ndarray, "N F"],
    label_N: Integer[np.ndarray, " N"],
    test_MF: UInt8[np.ndarray, "M F"],
) -> Answers:
    """The label of the training image at the smallest Euclidean distance; the first one of a tie.

    Brute force: N x M x F multiplications. Distances between bytes are whole numbers, exact in
    float64, so the answer depends on no library and on no number of threads.
    """
    nearest = [
        _nearest_rows(train_NF, test_MF[start : start + _CHUNK_IMAGES])
        for start in range(0, len(test_MF), _CHUNK_IMAGES)
    ]
    return Answers(label_N[np.concatenate(nearest)])


def _nearest_rows(
    train_NF: UInt8[np.ndarray, "N F"], test_PF: UInt8[np.ndarray, "P F"]
) -> Integer[np.ndarray, " P"]:
    test_wide_PF = test_PF.astype(np.float64)
    best_P = np.full(len(test_PF), np.inf)
    row_P = np.zeros(len(test_PF), np.int64)
    for start in range(0, len(train_NF), _CHUNK_IMAGES):
        chunk_CF = train_NF[start : start + _CHUNK_IMAGES].astype(np.float64)
        # |a - b|^2 less |b|^2, which is the same for every candidate.
        gap_PC = (chunk_CF**2).sum(axis=1) - 2 * test_wide_PF @ chunk_CF.T
        closest_P = gap_PC.argmin(axis=1)
        gap_P = gap_PC[np.arange(len(test_PF)), closest_P]
        better_P = gap_P < best_P
        best_P = np.where(better_P, gap_P, best_P)
        row_P = np.where(better_P, start + closest_P, row_P)
    return row_P


def logistic_regression(
    train_NF: UInt8[np.ndarray, "N F"],
    label_N: Integer[np.ndarray, " N"],
    test_MF: UInt8[np.ndarray, "M F"],
    *,
    seed: int,
) -> Answers:
    """Multinomial logistic regression on standardised pixels.

    The L2 penalty is chosen by the log loss of stratified cross-validation on the training labels;
    `seed` draws the folds. About 35 fits, each of N x min(N, F) x K multiplications an iteration;
    8 x F x (N + M) bytes.

    Raises:
        DataError: If the training labels name fewer than two classes.
    """
    if len(np.unique(label_N)) < 2:
        raise DataError("the training split has images of one class only; a baseline needs two")
    train_ND, test_MD = _rotate(*_standardise(train_NF, test_MF))
    folds = min(_MAX_FOLDS, int(np.unique(label_N, return_counts=True)[1].min()))
    with warnings.catch_warnings():
        # Weak penalties on separable images have no finite optimum; the fold losses judge them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds < 2:
            plain = LogisticRegression(C=FALLBACK_C, max_iter=_MAX_ITERATIONS)
            fitted, chosen = plain.fit(train_ND, label_N), {"C": FALLBACK_C, "folds": 0.0}
        else:
            fitted, chosen = _cross_validate(train_ND, label_N, folds=folds, seed=seed)
    return Answers(fitted.predict(test_MD).astype(label_N.dtype), chosen)


def _cross_validate(
    train_ND: Float[np.ndarray, "N D"],
    label_N: Integer[np.ndarray, " N"],
    *,
    folds: int,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    search = LogisticRegressionCV(
        Cs=C_GRID,
        l1_ratios=(0.0,),
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        scoring="neg_log_loss",
        max_iter=_MAX_ITERATIONS,
        use_legacy_attributes=False,
    ).fit(train_ND, label_N)
    losses = -search.scores_.reshape(folds, len(C_GRID)).mean(axis=0)
    tried = {f"log_loss[C={c:g}]": float(loss) for c, loss in zip(C_GRID, losses, strict=True)}
    return search, {"C": float(search.C_), "folds": float(folds), **tried}


def _standardise(
    train_NF: UInt8[np.ndarray, "N F"], test_MF: UInt8[np.ndarray, "M F"]
) -> tuple[Float[np.ndarray, "N F"], Float[np.ndarray, "M F"]]:
    """Zero mean and unit spread for every pixel of the training images; constant pixels stay 0."""
    mean_F, std_F = train_NF.mean(axis=0), train_NF.std(axis=0)
    scale_F = np.where(std_F > 0, std_F, 1.0)
    return (train_NF - mean_F) / scale_F, (test_MF - mean_F) / scale_F


def _rotate(
    train_NF: Float[np.ndarray, "N F"], test_MF: Float[np.ndarray, "M F"]
) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "M D"]]:
    """Coordinates in the span of the training images, where they are fewer than pixels.

    The optimum of an L2-penalised model lies in that span and does not change when the axes turn,
    so answers stay the same while a fit gets F / N times cheaper.
    """
    if train_NF.shape[0] >= train_NF.shape[1]:
        return train_NF, test_MF
    basis_FD, train_DN = np.linalg.qr(train_NF.T)
    return train_DN.T, test_MF @ basis_FD
