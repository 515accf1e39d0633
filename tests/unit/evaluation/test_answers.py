"""Figures of logits against scikit-learn and against formulas written out for one image."""

import numpy as np
import pytest
from sklearn import metrics as reference

from pipeline.evaluation.answers import Answers, log_probabilities
from pipeline.evaluation.calibration import calibrate


def drawn(images: int = 400, classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(images, classes)).astype(np.float32) * 2
    logits[np.arange(images), labels] += 1.5
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_scikit_learn(k: int) -> None:
    logits, labels = drawn()
    expected = reference.top_k_accuracy_score(labels, logits, k=k)
    found = (Answers.of(logits, labels, "softmax").ranks < k).mean()
    assert found == pytest.approx(expected, abs=1e-6)


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    logits = np.array([[1, 3, 3, 0], [3, 3, 3, 3]], np.float32)
    found = Answers.of(logits, np.array([2, 3]), "softmax")
    assert found.predicted.tolist() == [1, 0]
    assert found.ranks.tolist() == [1, 3]
    assert found.right.tolist() == [False, False]


def test_nll_agrees_with_scikit_learn_and_survives_large_logits() -> None:
    logits, labels = drawn()
    expected = reference.log_loss(labels, softmax(logits), labels=range(9))
    found = Answers.of(logits, labels, "softmax").nlls.mean()
    assert found == pytest.approx(expected, abs=1e-6)
    far = Answers.of(np.array([[1e4, 0.0]], np.float32), np.array([1]), "softmax")
    assert far.nlls.tolist() == pytest.approx([1e4])
    assert far.briers.tolist() == pytest.approx([2.0])


def test_nll_of_sigmoids_asks_about_every_class_and_survives_large_logits() -> None:
    logits, labels = drawn(50, 4)
    yes = 1 / (1 + np.exp(-logits.astype(np.float64)))
    asked = [reference.log_loss(labels == it, yes[:, it], labels=(False, True)) for it in range(4)]
    found = Answers.of(logits, labels, "sigmoid")
    assert found.nlls.mean() == pytest.approx(sum(asked), abs=1e-6)
    far = Answers.of(np.array([[1e4, -1e4]], np.float32), np.array([1]), "sigmoid")
    assert far.nlls.tolist() == pytest.approx([2e4])


@pytest.mark.parametrize("probabilities", ["softmax", "sigmoid"])
def test_brier_is_the_sum_of_those_of_scikit_learn_over_classes(probabilities: str) -> None:
    logits, labels = drawn(60, 5)
    odds = (
        softmax(logits) if probabilities == "softmax" else 1 / (1 + np.exp(-logits.astype(float)))
    )
    each = [reference.brier_score_loss(labels == it, odds[:, it]) for it in range(5)]
    found = Answers.of(logits, labels, probabilities)  # type: ignore[arg-type]
    assert found.briers.mean() == pytest.approx(sum(each), abs=1e-6)
    assert found.confidences == pytest.approx(odds.max(axis=1), abs=1e-6)


def test_log_probabilities_of_a_softmax_sum_to_one() -> None:
    logits, _ = drawn()
    assert np.exp(log_probabilities(logits, "softmax")).sum(axis=1) == pytest.approx(1.0)


def test_calibration_error_agrees_with_its_definition() -> None:
    logits, labels = drawn()
    answers = Answers.of(logits, labels, "softmax")
    total = 0.0
    for number in range(15):  # written out image by image, as in Guo et al. 2017, equation 3
        inside = [
            index
            for index, it in enumerate(answers.confidences)
            if number / 15 < it <= (number + 1) / 15
        ]
        if inside:
            gap = answers.right[inside].mean() - answers.confidences[inside].mean()
            total += len(inside) / len(labels) * abs(gap)
    found = calibrate(answers.confidences, answers.right)
    assert found.ece_ratio == pytest.approx(total, abs=1e-6)
    assert sum(it.images for it in found.bins) == len(labels)


def test_bins_are_open_below_and_hold_their_upper_end() -> None:
    confidences = np.array([0.0, 0.2, 0.20001, 1.0])
    found = calibrate(confidences, np.array([False, False, True, True]), bins=5)
    assert [it.images for it in found.bins] == [2, 1, 0, 0, 1]
    assert found.bins[2].confidence is None
    assert found.ece_ratio == pytest.approx((0.2 + (1 - 0.20001)) / 4)
