"""Counts of right and wrong answers, and what may be said from them; NumPy only.

Axes: N images, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from schemas.evaluation import Accuracy, AccuracyReport, Share

_RESAMPLES = 10_000
_BOOTSTRAP_SEED = 20_201_022
_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal distribution


def wilson_interval(correct: float, total: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927): low and high, within [0, 1].

    Unlike the textbook interval it stays honest for few images and for proportions near 0 or 1.

    Raises:
        ValueError: If `total` is not positive or `correct` is outside [0, total].
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"correct is {correct} of {total}; it must be in [0, total], total > 0")
    ratio, z_squared = correct / total, _Z_95**2
    scale = 1 + z_squared / total
    centre = (ratio + z_squared / (2 * total)) / scale
    spread = ratio * (1 - ratio) / total + z_squared / (4 * total**2)
    half = _Z_95 * math.sqrt(spread) / scale
    # At the two ends the formula is exact but for rounding.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == total else centre + half
    return low, high


def bootstrap_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a proportion, over images (Efron 1979).

    Drawing `total` images with replacement gives a binomial number of right ones, so the resamples
    are drawn as such: the same distribution, in memory that does not grow with the images. The
    generator is fixed. For few images, or where nearly all answers are right, it is too narrow:
    the score interval is not.
    """
    rng = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_SEED))
    ratios = rng.binomial(total, correct / total, size=_RESAMPLES) / total
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def share(correct: int, total: int) -> Share:
    """A share of images with both intervals."""
    low, high = wilson_interval(correct, total)
    bootstrap_low, bootstrap_high = bootstrap_interval(correct, total)
    return Share(
        correct=correct,
        total=total,
        ratio=correct / total,
        low_ratio=low,
        high_ratio=high,
        bootstrap_low_ratio=bootstrap_low,
        bootstrap_high_ratio=bootstrap_high,
    )


def measure(
    method: str, label_N: Integer[np.ndarray, " N"], predicted_N: Integer[np.ndarray, " N"]
) -> Accuracy:
    """Top-1 accuracy of `method` with its interval."""
    correct, total = int((label_N == predicted_N).sum()), len(label_N)
    low, high = wilson_interval(correct, total)
    return Accuracy(
        method=method,
        correct=correct,
        total=total,
        top1_ratio=correct / total,
        low_ratio=low,
        high_ratio=high,
    )


def count_confusion(
    label_N: Integer[np.ndarray, " N"],
    predicted_N: Integer[np.ndarray, " N"],
    num_classes: int,
) -> Integer[np.ndarray, "K K"]:
    """How often each true class (row) was answered with each class (column)."""
    cell_N = label_N.astype(np.int64) * num_classes + predicted_N
    counts = np.bincount(cell_N, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_ratios(
    confusion_KK: Integer[np.ndarray, "K K"], class_names: Sequence[str]
) -> dict[str, float]:
    """Share of correct answers of each class; classes without images are left out."""
    totals = confusion_KK.sum(axis=1)
    return {
        name: float(confusion_KK[index, index] / totals[index])
        for index, name in enumerate(class_names)
        if totals[index]
    }


def accuracy_report(
    label_N: Integer[np.ndarray, " N"],
    predictions: Mapping[str, Integer[np.ndarray, " N"]],
    *,
    split: str,
    class_names: Sequence[str],
    chosen: Mapping[str, float],
) -> AccuracyReport:
    """Everything that `accuracy.json` holds, for each method of `predictions`."""
    confusions = {
        method: count_confusion(label_N, predicted_N, len(class_names))
        for method, predicted_N in predictions.items()
    }
    return AccuracyReport(
        split=split,
        accuracies=tuple(measure(method, label_N, it) for method, it in predictions.items()),
        per_class={name: class_ratios(it, class_names) for name, it in confusions.items()},
        class_names=tuple(class_names),
        confusion={
            name: tuple(tuple(int(count) for count in row) for row in it)
            for name, it in confusions.items()
        },
        chosen=dict(chosen),
    )
