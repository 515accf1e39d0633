import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.evaluation.metrics import (
    accuracy_report,
    bootstrap_interval,
    class_ratios,
    count_confusion,
    measure,
    wilson_interval,
)
from schemas.evaluation import AccuracyReport


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_that_of_the_literature(
    correct: int, total: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_ratio_and_stays_in_bounds(counts: tuple[int, int]) -> None:
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        wilson_interval(correct, total)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 60))
def test_counts_agree_with_scikit_learn(seed: int, num_classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(num_classes, size=(2, images))
    confusion = count_confusion(labels, answers, num_classes)
    every = range(num_classes)
    assert (confusion == reference.confusion_matrix(labels, answers, labels=every)).all()
    accuracy = measure("model", labels, answers)
    assert accuracy.top1_ratio == pytest.approx(reference.accuracy_score(labels, answers))
    assert (accuracy.correct, accuracy.total) == (confusion.trace(), images)
    names = [f"c{index}" for index in every]
    ratios = class_ratios(confusion, names)
    recall = reference.recall_score(labels, answers, labels=every, average=None, zero_division=0)
    assert ratios == pytest.approx({names[it]: recall[it] for it in np.unique(labels)})


def test_a_report_has_every_method_and_reads_back_equal() -> None:
    labels = np.array([0, 0, 1, 1])
    report = accuracy_report(
        labels,
        {"good": labels, "bad": 1 - labels},
        split="test",
        class_names=("cat", "dog", "unseen"),
        chosen={"good.C": 1.0},
    )
    assert [(it.method, it.correct) for it in report.accuracies] == [("good", 4), ("bad", 0)]
    assert report.per_class["good"] == {"cat": 1.0, "dog": 1.0}, "no images, no ratio"
    assert report.confusion["bad"] == ((0, 2, 0), (2, 0, 0), (0, 0, 0))
    assert AccuracyReport.parse(report.dump()) == report


@pytest.mark.parametrize(("total", "ratio"), [(200, 0.6), (500, 0.8), (2000, 0.9)])
def test_intervals_cover_the_true_ratio_of_a_thousand_simulated_splits(
    total: int, ratio: float
) -> None:
    rng = np.random.default_rng(total)
    found = rng.binomial(total, ratio, size=1000).tolist()
    for interval in (bootstrap_interval, wilson_interval):
        ends = {correct: interval(correct, total) for correct in set(found)}
        covered = sum(ends[correct][0] <= ratio <= ends[correct][1] for correct in found)
        assert 930 <= covered <= 970, f"{interval.__name__}: {covered} of 1000"


def test_near_the_end_only_the_score_interval_is_honest() -> None:
    """Fifty images, 97 % of which a model gets right in truth: why Wilson's is what is shown."""
    found = np.random.default_rng(0).binomial(50, 0.97, size=1000).tolist()
    covered = {
        interval.__name__: sum(
            low <= 0.97 <= high for low, high in map(interval, found, [50] * 1000)
        )
        for interval in (bootstrap_interval, wilson_interval)
    }
    assert covered["bootstrap_interval"] < 850
    assert covered["wilson_interval"] > 930


def test_the_bootstrap_is_that_over_images() -> None:
    """Resampling the images themselves gives the same interval, to one image."""
    right = np.arange(120) < 90
    draws = np.random.default_rng(0).integers(120, size=(20_000, 120))
    expected = np.quantile(right[draws].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(90, 120) == pytest.approx(expected, abs=1.01 / 120)
    assert bootstrap_interval(90, 120) == bootstrap_interval(90, 120)
