from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.evaluation.baselines import Answers, answer, logistic_regression, nearest_neighbour
from schemas.errors import DataError

Digits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits(train: int, test: int = 400) -> Digits:
    """Real digits: training pixels and labels, test pixels and labels."""
    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = (found.data * 15).astype(np.uint8)[order]
    labels = found.target[order]
    return pixels[:train], labels[:train], pixels[-test:], labels[-test:]


@pytest.mark.parametrize("method", ["nearest_neighbour", "logistic_regression"])
def test_a_thousand_digits_are_enough_for_simple_methods(method: Any) -> None:
    train, train_labels, test, test_labels = digits(1000)
    found = answer(method, train, label_N=train_labels, test_MF=test, seed=0)
    assert (found.predicted == test_labels).mean() > 0.95


def test_nearest_neighbour_is_that_of_scikit_learn() -> None:
    train, train_labels, test, _ = digits(700, 600)
    reference = KNeighborsClassifier(1, algorithm="brute").fit(train.astype(float), train_labels)
    expected = reference.predict(test.astype(float))
    assert (nearest_neighbour(train, train_labels, test).predicted == expected).all()


def test_the_first_of_equally_near_neighbours_wins() -> None:
    train = np.array([[0], [20]] * 600, np.uint8)  # more than one chunk
    labels = np.arange(1200)
    found = nearest_neighbour(train, labels, np.array([[10], [21]], np.uint8))
    assert found.predicted.tolist() == [0, 1]


def test_turned_axes_leave_the_optimum_where_it_is() -> None:
    """40 images of 64 pixels are fitted in 40 dimensions, with the same answers as in 64."""
    train, train_labels, test, _ = digits(40)
    found = logistic_regression(train, train_labels, test, seed=0)
    scaler = StandardScaler().fit(train)
    plain = LogisticRegression(C=found.chosen["C"], max_iter=5000, tol=1e-8)
    plain.fit(scaler.transform(train), train_labels)
    expected = plain.predict(scaler.transform(test))
    assert (found.predicted == expected).mean() > 0.99, "equal but for rounding on the borders"


def test_the_penalty_with_the_smallest_held_out_loss_is_taken() -> None:
    train, train_labels, test, _ = digits(200)
    chosen = logistic_regression(train, train_labels, test, seed=0).chosen
    losses = {name: value for name, value in chosen.items() if name.startswith("log_loss")}
    assert len(losses) == 7
    assert min(losses, key=lambda name: losses[name]) == f"log_loss[C={chosen['C']:g}]"
    assert chosen["folds"] == 5


def test_answers_are_fixed_by_the_seed() -> None:
    train, train_labels, test, _ = digits(100)

    def fit(seed: int) -> Answers:
        return logistic_regression(train, train_labels, test, seed=seed)

    assert fit(3).chosen == fit(3).chosen
    assert (fit(3).predicted == fit(3).predicted).all()
    assert fit(3).chosen != fit(4).chosen, "the seed draws the folds"


def test_one_label_of_a_class_leaves_nothing_to_hold_out() -> None:
    train, train_labels, test, test_labels = digits(300)
    single = np.array([np.flatnonzero(train_labels == digit)[0] for digit in range(10)])
    found = logistic_regression(train[single], train_labels[single], test, seed=0)
    assert found.chosen == {"C": 1.0, "folds": 0.0}
    assert (found.predicted == test_labels).mean() > 0.4


def test_one_class_alone_is_refused() -> None:
    train, _, test, _ = digits(10)
    with pytest.raises(DataError, match="one class only"):
        logistic_regression(train, np.zeros(10, int), test, seed=0)
