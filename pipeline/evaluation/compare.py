"""Two models on the same images: paired difference, its interval, McNemar's test.

Axes: N images.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # SciPy ships no types

from pipeline.data.order import keyed_hash
from pipeline.data.staging import read_table
from pipeline.evaluation.metrics import wilson_interval
from pipeline.evaluation.passes import uids_of
from schemas.comparison import ComparedModel, ComparedPair, ComparisonReport
from schemas.errors import DataError

_SHOWN_UIDS = 3


@dataclass(frozen=True)
class Answers:
    """What a model answered, sorted by uid: 25 bytes for each image."""

    name: str
    uids: NDArray[np.bytes_]
    labels: Integer[np.ndarray, " N"]
    correct: Bool[np.ndarray, " N"]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Resampling:
    """How often, and from which seed, the images are drawn again."""

    resamples: int
    seed: int


def read_answers(path: Path, name: str, class_names: Sequence[str]) -> Answers:
    """The predictions of an `evaluate` artifact; right is what equals the label of the data."""
    table = read_table(path)
    labels, predicted = (table[column].to_numpy() for column in ("label", "predicted"))
    uids = uids_of(table)
    order = np.argsort(uids)
    return Answers(
        name=name,
        uids=uids[order],
        labels=labels[order].astype(np.int64),
        correct=(predicted == labels)[order],
        class_names=tuple(class_names),
    )


def compare(answers: Sequence[Answers], resampling: Resampling) -> ComparisonReport:
    """Every model, and every two of them.

    Raises:
        DataError: If they did not answer on the same images with the same labels.
    """
    for other in answers[1:]:
        check_same_images(answers[0], other)
    pairs = [compare_pair(*two, resampling) for two in itertools.combinations(answers, 2)]
    adjusted = holm([pair.mcnemar_p for pair in pairs])
    return ComparisonReport(
        images=len(answers[0].uids),
        resamples=resampling.resamples,
        seed=resampling.seed,
        models=tuple(model_of(it) for it in answers),
        pairs=tuple(pair.revise(holm_p=p) for pair, p in zip(pairs, adjusted, strict=True)),
    )


def model_of(answers: Answers) -> ComparedModel:
    """Its accuracy with the Wilson interval."""
    correct, images = int(answers.correct.sum()), len(answers.correct)
    low, high = wilson_interval(correct, images)
    return ComparedModel(
        name=answers.name,
        correct=correct,
        top1_ratio=correct / images,
        low_ratio=low,
        high_ratio=high,
    )


def compare_pair(first: Answers, second: Answers, resampling: Resampling) -> ComparedPair:
    """Difference of two models on the same images; `holm_p` is that of a single pair."""
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    images = len(first.correct)
    names = f"{first.name}/{second.name}"
    low, high = bootstrap_interval(only_first, only_second, images, resampling, names=names)
    p, mid_p = mcnemar(only_first, only_second)
    return ComparedPair(
        first=first.name,
        second=second.name,
        only_first_correct=only_first,
        only_second_correct=only_second,
        difference_ratio=(only_first - only_second) / images,
        low_ratio=low,
        high_ratio=high,
        mcnemar_p=p,
        mcnemar_mid_p=mid_p,
        holm_p=p,
    )


def bootstrap_interval(
    only_first: int, only_second: int, images: int, resampling: Resampling, *, names: str
) -> tuple[float, float]:
    """95 % percentile interval of the paired difference over resampled images.

    A resample of N images holds so many that only the first, only the second, and both or none
    answer right: those counts are multinomial, and nothing else of it counts. So they are drawn
    themselves, in O(1) for each resample, fixed by (seed, names).
    """
    counts = np.array([only_first, only_second, images - only_first - only_second])
    key = keyed_hash("compare", resampling.seed, names.encode())
    rng = np.random.Generator(np.random.Philox(key=key))
    drawn = rng.multinomial(images, counts / images, size=resampling.resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / images, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Exact two-sided p of McNemar's test, and its mid-p (Fagerland et al. 2013).

    Of the images that one model alone answers right, each model has half if both err alike.
    """
    disagree, fewer = only_first + only_second, min(only_first, only_second)
    if disagree == 0:
        return 1.0, 1.0
    binomial = stats.binom(disagree, 0.5)
    these = float(binomial.pmf(fewer))
    if only_first == only_second:
        return 1.0, 1.0 - these / 2
    p = 2.0 * float(binomial.cdf(fewer))
    return p, p - these


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for all of them (Holm 1979), in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def check_same_images(first: Answers, second: Answers) -> None:
    """Refuse to compare answers to other questions.

    Raises:
        DataError: With what differs: classes, images or labels.
    """
    names = f"{first.name} and {second.name}"
    hint = "evaluate both on the same split of the same shard set"
    if first.class_names != second.class_names:
        differ = sorted(set(first.class_names) ^ set(second.class_names))
        said = f": {', '.join(differ[:5])}" if differ else " in their order"
        raise DataError(f"{names} have classes that differ{said}", hint=hint)
    missing = [
        np.setdiff1d(ours.uids, theirs.uids, assume_unique=True)
        for ours, theirs in ((first, second), (second, first))
    ]
    if any(map(len, missing)):
        examples = [_hex(uid) for uid in np.concatenate(missing)[:_SHOWN_UIDS].tolist()]
        raise DataError(
            f"{names} did not answer on the same images: {len(missing[0])} are only of "
            f"{first.name}, {len(missing[1])} only of {second.name}, such as {', '.join(examples)}",
            hint=hint,
        )
    other = np.flatnonzero(first.labels != second.labels)
    if len(other):
        example = _hex(first.uids[other[0]])
        raise DataError(
            f"{names} call {len(other)} images by other classes, such as {example}", hint=hint
        )


def _hex(uid: bytes) -> str:
    return bytes(uid).ljust(16, b"\0").hex()
