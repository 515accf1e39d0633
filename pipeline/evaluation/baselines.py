"""Simple methods on raw pixels: what a model has to be compared with.

Both see the training split's pixels and labels and the test split's pixels, never its labels.
Axes: N training images, M test images, P chunk of test images, K classes, F features (pixels times
channels).
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Integer, UInt8
from sklearn.model_selection import StratifiedKFold

from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit
from pipeline.evaluation.logistic import fit_logistic
from schemas.errors import DataError
from schemas.evaluation import Method

_MAX_FOLDS = 5
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
    counts = np.unique(label_N, return_counts=True)[1]
    count = min(_MAX_FOLDS, int(counts.min()))
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed) if count >= 2 else None
    folds = [] if splitter is None else list(splitter.split(train_NF, label_N))
    fitted = fit_logistic(train_NF, label_N, folds)
    chosen = {"folds": float(len(folds)), **fitted.chosen}
    return Answers(fitted.predict(test_MF).astype(label_N.dtype), chosen)
