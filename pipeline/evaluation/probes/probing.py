"""Each method of a probe on the features of two splits: learned from one, measured on the other.

Axes: N training images, M measured ones, P chunk of them, D features, n neighbours.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from pipeline.evaluation.features import Features
from pipeline.evaluation.logistic import fit_logistic
from pipeline.evaluation.metrics import measure
from pipeline.evaluation.probes import few_shot, neighbours
from pipeline.evaluation.probes.drawing import choose_shots, hold_out, ranks
from pipeline.evaluation.study import t_interval
from schemas.evaluation import Accuracy
from schemas.probing import FewShotMean, FewShotResult, ProbeReport, ProbeSpec

_NEIGHBOUR_IMAGES = 512
_Chosen = dict[str, float]


@dataclass(frozen=True)
class ProbeData:
    """What a probe works on."""

    train: Features
    measured: Features
    split: str
    """The one that is measured."""
    class_names: tuple[str, ...]
    seed: int


def probe(spec: ProbeSpec, data: ProbeData, *, say: Callable[[str], None]) -> ProbeReport:
    """Every method of the spec, one after the other; `say` is told of each.

    Costs: see `few_shot_results`, `knn_accuracies` and `logistic_accuracy`. Nothing but logistic
    regression holds the features of all training images.

    Raises:
        DataError: If logistic regression is asked for and there is one class only.
    """
    results: tuple[FewShotResult, ...] = ()
    accuracies: list[Accuracy] = []
    chosen: _Chosen = {}
    for method in spec.methods:
        say(f"{method}: {len(data.train)} training images, {len(data.measured)} to measure")
        if method == "few_shot":
            results = tuple(few_shot_results(spec, data))
        elif method == "knn":
            accuracies += knn_accuracies(spec, data)
        else:
            accuracy, chosen = logistic_accuracy(spec, data)
            accuracies.append(accuracy)
    counts = np.bincount(data.measured.labels, minlength=len(data.class_names))
    return ProbeReport(
        split=data.split,
        class_names=data.class_names,
        class_counts=tuple(counts.tolist()),
        train_images=len(data.train),
        few_shot=results,
        few_shot_means=few_shot_means(results),
        accuracies=tuple(accuracies),
        chosen=chosen,
    )


def few_shot_results(spec: ProbeSpec, data: ProbeData) -> Iterator[FewShotResult]:
    """One result for each draw and number of shots; (seed, draw, uid) say which images it takes.

    Memory: that of `few_shot.fit` for shots x classes images, and 24 bytes for each of `train`.
    """
    label_N, label_M = data.train.labels, data.measured.labels
    for draw in range(spec.draws):
        rank_N = ranks(data.train, purpose=f"few-shot/{draw}", seed=data.seed)
        for shots in spec.shots:
            rows = choose_shots(label_N, rank_N, shots=shots)
            fitted = few_shot.fit(
                data.train.take(rows),
                label_N[rows],
                num_classes=len(data.class_names),
                l2=spec.l2,
            )
            predicted_M = np.concatenate([fitted.predict(it) for it in data.measured.chunks()])
            accuracy = measure(f"few_shot_{shots}", label_M, predicted_M)
            yield FewShotResult(shots=shots, draw=draw, train_images=len(rows), accuracy=accuracy)


def few_shot_means(results: Sequence[FewShotResult]) -> tuple[FewShotMean, ...]:
    """Mean, spread and t-interval over the draws of each number of shots, in their order."""
    ratios: dict[int, list[float]] = {}
    for result in results:
        ratios.setdefault(result.shots, []).append(result.accuracy.top1_ratio)
    return tuple(_mean(shots, found) for shots, found in ratios.items())


def knn_accuracies(spec: ProbeSpec, data: ProbeData) -> tuple[Accuracy, ...]:
    """Accuracy of the vote of the nearest training images, for each number of them.

    N x M x D multiplications in float64, however many numbers; memory does not grow with `train`
    but for its labels.
    """
    label_N, label_M = data.train.labels, data.measured.labels
    predicted: dict[int, list[Integer[np.ndarray, " P"]]] = {it: [] for it in spec.neighbours}
    for query_PD in _pieces(data.measured.chunks()):
        row_Pn, cosine_Pn = neighbours.nearest(
            data.train.chunks(), query_PD, count=max(spec.neighbours)
        )
        for count, answers in predicted.items():
            answers.append(
                neighbours.vote(
                    label_N[row_Pn[:, :count]],
                    cosine_Pn[:, :count],
                    num_classes=len(data.class_names),
                    temperature=spec.temperature,
                )
            )
    return tuple(
        measure(f"knn_{count}", label_M, np.concatenate(answers))
        for count, answers in predicted.items()
    )


def logistic_accuracy(spec: ProbeSpec, data: ProbeData) -> tuple[Accuracy, _Chosen]:
    """Accuracy of logistic regression on all of `train`, and the penalty, chosen on a part of it.

    The part is drawn by (seed, uid). Costs as `fit_logistic`, with one fold.

    Raises:
        DataError: If `train` has images of one class only.
    """
    label_N = data.train.labels
    rank_N = ranks(data.train, purpose="probe-holdout", seed=data.seed)
    fold = hold_out(label_N, rank_N, ratio=spec.holdout_ratio)
    train_ND = data.train.all().astype(np.float64)
    fitted = fit_logistic(train_ND, label_N, [] if fold is None else [fold])
    predicted_M = np.concatenate([fitted.predict(it) for it in data.measured.chunks()])
    held = 0 if fold is None else len(fold[1])
    chosen = {"held_out_images": float(held), **fitted.chosen}
    return (
        measure("logistic_regression", data.measured.labels, predicted_M),
        {f"logistic_regression.{name}": value for name, value in chosen.items()},
    )


def _mean(shots: int, ratios: Sequence[float]) -> FewShotMean:
    several = len(ratios) > 1
    low, high = t_interval(ratios) if several else (None, None)
    return FewShotMean(
        shots=shots,
        draws=len(ratios),
        mean_ratio=math.fsum(ratios) / len(ratios),
        std_ratio=statistics.stdev(ratios) if several else None,
        low_ratio=low,
        high_ratio=high,
    )


def _pieces(chunks: Iterator[Float[np.ndarray, "C D"]]) -> Iterator[Float[np.ndarray, "P D"]]:
    for chunk in chunks:
        for start in range(0, len(chunk), _NEIGHBOUR_IMAGES):
            yield chunk[start : start + _NEIGHBOUR_IMAGES]
