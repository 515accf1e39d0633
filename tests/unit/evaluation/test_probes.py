import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from pipeline.evaluation.features import Features
from pipeline.evaluation.logistic import C_GRID
from pipeline.evaluation.metrics import wilson_interval
from pipeline.evaluation.probes import few_shot, neighbours
from pipeline.evaluation.probes.drawing import choose_shots, hold_out, ranks
from pipeline.evaluation.probes.probing import (
    ProbeData,
    few_shot_results,
    knn_accuracies,
    logistic_accuracy,
    probe,
)
from pipeline.evaluation.study import t_interval
from schemas.errors import DataError
from schemas.probing import ProbeSpec
from tests.support.features import features_table, made_features

CLASSES = 4
SPEC = ProbeSpec.parse({"features": "f", "shots": [1, 5], "draws": 3})


def data(train: Features, measured: Features, *, seed: int = 3) -> ProbeData:
    return ProbeData(train, measured, "test", tuple("abcd"), seed)


def direct_weights(features: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """The normal equations in float64, without eigenvectors."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5
    x = np.hstack([(features - mean) / std, np.full((len(features), 1), 100.0)])
    y = 2.0 * np.eye(CLASSES)[labels] - 1.0
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize(("images", "width"), [(300, 12), (21, 20), (20, 20), (12, 96), (4, 40)])
@pytest.mark.parametrize("l2", [1024.0, 1.0])
def test_few_shot_weights_are_those_of_a_direct_solve(images: int, width: int, l2: float) -> None:
    """More images than features, as many, and fewer: both forms give the same classifier."""
    found = made_features(images, width=width)
    x, labels = found.all().astype(np.float64), found.labels
    fitted = few_shot.fit(found.all(), labels, num_classes=CLASSES, l2=l2)
    expected = direct_weights(x, labels, l2)
    gap = np.linalg.norm(fitted.weights - expected) / np.linalg.norm(expected)
    assert gap <= 1e-6
    others = made_features(500, width=width, seed=1).all()
    whitened = (others - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)
    scores = np.hstack([whitened, np.full((len(others), 1), 100.0)]) @ expected
    assert (fitted.predict(others) == scores.argmax(axis=1)).all()


def test_shots_are_nested_balanced_and_fixed_by_seed_and_uid() -> None:
    found = made_features(402)
    rank = ranks(found, purpose="few-shot/0", seed=7)
    five, ten = (choose_shots(found.labels, rank, shots=shots) for shots in (5, 10))
    assert np.bincount(found.labels[ten]).tolist() == [10] * CLASSES
    assert set(five) < set(ten)
    assert set(ten) != set(
        choose_shots(found.labels, ranks(found, purpose="few-shot/1", seed=7), shots=10)
    )
    order = np.random.default_rng(0).permutation(len(found))
    moved = Features(found.table.take(pa.array(order)))
    again = choose_shots(moved.labels, ranks(moved, purpose="few-shot/0", seed=7), shots=10)
    assert set(moved.uids[again]) == set(found.uids[ten]), "storage order plays no part"


def test_a_small_class_gives_all_that_it_has() -> None:
    labels = np.array([0] * 3 + [1] * 9)
    rank = np.arange(12, dtype=np.uint64)[::-1].copy()
    assert choose_shots(labels, rank, shots=5).tolist() == [0, 1, 2, 7, 8, 9, 10, 11]


def test_no_class_is_held_out_whole() -> None:
    labels = np.array([0] * 10 + [1] * 4 + [2])
    rank = np.arange(15, dtype=np.uint64)
    fold = hold_out(labels, rank, ratio=0.2)
    assert fold is not None
    assert fold[1].tolist() == [0, 1]
    assert sorted([*fold[0], *fold[1]]) == list(range(15))
    assert hold_out(np.arange(5), rank[:5], ratio=0.9) is None


def test_neighbours_are_those_of_scikit_learn_for_any_chunk() -> None:
    train, queries = made_features(700).all(), made_features(90, seed=1).all()
    reference = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute")
    distance, row = reference.fit(train.astype(float)).kneighbors(queries.astype(float))
    for size in (7, 64, 1000):
        chunks = (train[start : start + size] for start in range(0, len(train), size))
        found, cosine = neighbours.nearest(chunks, queries, count=20)
        assert (found == row).all()
        assert cosine == pytest.approx(1 - distance, abs=1e-12)


def test_of_equal_neighbours_the_earlier_row_counts() -> None:
    train = np.array([[1.0, 0.0], [2.0, 0.0]] * 50 + [[0.0, 1.0]])
    for size in (3, 200):
        chunks = (train[start : start + size] for start in range(0, len(train), size))
        found, cosine = neighbours.nearest(chunks, np.array([[5.0, 0.0]]), count=4)
        assert found.tolist() == [[0, 1, 2, 3]]
        assert cosine.tolist() == [[1.0] * 4]


def test_a_feature_of_zeros_is_alike_to_nothing() -> None:
    _, cosine = neighbours.nearest(iter([np.eye(3)]), np.zeros((1, 3)), count=2)
    assert cosine.tolist() == [[0.0, 0.0]]


def test_votes_are_weighted_by_cosine() -> None:
    label, cosine = np.array([[2, 1, 1]]), np.array([[0.9, 0.8, 0.8]])
    near, far = (
        neighbours.vote(label, cosine, num_classes=3, temperature=temperature).tolist()
        for temperature in (0.07, 10.0)
    )
    assert (near, far) == ([2], [1]), "exp(0.1 / 0.07) is 4.2, and two others are worth 2"


def test_knn_counts_each_measured_image_once() -> None:
    train, measured = made_features(600), made_features(1300, seed=1)
    one, twenty = knn_accuracies(SPEC, data(train, measured))
    unit = measured.all() / np.linalg.norm(measured.all(), axis=1, keepdims=True)
    others = train.all() / np.linalg.norm(train.all(), axis=1, keepdims=True)
    nearest = train.labels[(unit @ others.T).argmax(axis=1)]
    assert (one.correct, one.total) == ((nearest == measured.labels).sum(), 1300)
    assert (one.method, twenty.method) == ("knn_1", "knn_20")
    assert twenty.correct > one.correct


def test_the_penalty_is_chosen_on_a_part_of_the_training_images() -> None:
    train, measured = made_features(400, spread=3.0), made_features(300, seed=1, spread=3.0)
    found, chosen = logistic_accuracy(SPEC, data(train, measured))
    fold = hold_out(train.labels, ranks(train, purpose="probe-holdout", seed=3), ratio=0.2)
    assert fold is not None
    assert chosen["logistic_regression.held_out_images"] == len(fold[1]) == 80
    scaler = StandardScaler().fit(train.all())
    x = scaler.transform(train.all().astype(float))
    losses = []
    for c in C_GRID:
        plain = LogisticRegression(C=c, max_iter=5000, tol=1e-6)
        plain.fit(x[fold[0]], train.labels[fold[0]])
        losses.append(log_loss(train.labels[fold[1]], plain.predict_proba(x[fold[1]])))
    best = C_GRID[int(np.argmin(losses))]
    assert chosen["logistic_regression.C"] == best
    assert chosen[f"logistic_regression.log_loss[C={best:g}]"] == pytest.approx(min(losses), 1e-3)
    whole = LogisticRegression(C=best, max_iter=5000, tol=1e-6).fit(x, train.labels)
    answers = whole.predict(scaler.transform(measured.all().astype(float)))
    assert abs((answers == measured.labels).sum() - found.correct) <= 1


def test_a_rare_class_is_learned_and_not_held_out() -> None:
    train = made_features(203, classes=3)
    labels = np.where(np.arange(203) < 2, 3, train.labels)
    rare = features_table(list(train.table["uid"].to_pylist()), labels, train.all())
    found, chosen = logistic_accuracy(SPEC, data(rare, made_features(60, seed=1, classes=3)))
    assert chosen["logistic_regression.held_out_images"] == 39
    assert found.top1_ratio > 0.5


def test_one_class_alone_cannot_be_told_apart() -> None:
    train = made_features(20, classes=1)
    with pytest.raises(DataError, match="one class only"):
        logistic_accuracy(SPEC, data(train, train))


def test_a_report_holds_every_method_with_intervals() -> None:
    said: list[str] = []
    train, measured = made_features(300), made_features(200, seed=1)
    report = probe(SPEC, data(train, measured), say=said.append)
    assert [(it.draw, it.shots) for it in report.few_shot] == [
        (draw, shots) for draw in range(3) for shots in (1, 5)
    ]
    assert [it.train_images for it in report.few_shot[:2]] == [4, 20]
    ratios = [it.accuracy.top1_ratio for it in report.few_shot if it.shots == 5]
    (_, five) = report.few_shot_means
    assert five.mean_ratio == pytest.approx(np.mean(ratios))
    assert five.std_ratio == pytest.approx(np.std(ratios, ddof=1))
    assert (five.low_ratio, five.high_ratio) == t_interval(ratios)
    for found in report.accuracies:
        assert (found.low_ratio, found.high_ratio) == wilson_interval(found.correct, found.total)
    assert report.class_counts == (50,) * CLASSES
    assert len(said) == 3
    other = tuple(few_shot_results(SPEC, data(train, measured, seed=4)))
    assert other != report.few_shot, "the seed draws the images"


def test_features_are_read_in_chunks_and_by_row() -> None:
    found = made_features(150)
    assert np.array_equal(found.take(np.array([149, 3, 70])), found.all()[[149, 3, 70]])
    assert np.array_equal(np.concatenate(list(found.chunks(10, 90))), found.all()[10:90])
