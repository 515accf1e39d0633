import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.evaluation.metrics import (
    accuracy_report,
    class_ratios,
    count_confusion,
    mean_nll,
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


def test_nll_agrees_with_scikit_learn_and_survives_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(4, size=50)
    odds = np.exp(logits.astype(np.float64))
    expected = reference.log_loss(labels, odds / odds.sum(axis=1, keepdims=True), labels=range(4))
    assert mean_nll(logits, labels, "softmax") == pytest.approx(expected, rel=1e-6)
    far, label = np.array([[1e4, 0.0]], np.float32), np.array([1])
    assert mean_nll(far, label, "softmax") == pytest.approx(1e4)


def test_nll_of_sigmoids_asks_about_every_class_and_survives_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(4, size=50)
    yes = 1 / (1 + np.exp(-logits.astype(np.float64)))
    asked = [reference.log_loss(labels == it, yes[:, it], labels=(False, True)) for it in range(4)]
    assert mean_nll(logits, labels, "sigmoid") == pytest.approx(sum(asked), rel=1e-6)
    far, label = np.array([[1e4, -1e4]], np.float32), np.array([1])
    assert mean_nll(far, label, "sigmoid") == pytest.approx(2e4)


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
