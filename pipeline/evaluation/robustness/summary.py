"""From a table of answers to points with intervals: NumPy over record batches, in one reading.

Axes: B rows of a record batch, S draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.evaluation.metrics import measure, wilson_interval
from pipeline.evaluation.robustness.trials import Place
from pipeline.evaluation.robustness.work import CLEAN
from schemas.evaluation import Accuracy
from schemas.robustness_report import (
    CorruptionError,
    RobustnessCurve,
    RobustnessPoint,
)

_Z_95 = 1.959963984540054


def clean_accuracy(table: pa.Table, stage: str) -> Accuracy:
    """Of a model on the images as they are."""
    label_N, predicted_N = table["label"].to_numpy(), table[f"{stage}|{CLEAN}"].to_numpy()
    return measure(stage, label_N, predicted_N)


def curves_of(table: pa.Table, stage: str, places: Iterable[Place]) -> tuple[RobustnessCurve, ...]:
    """The curves of one model, in the order of their first places; points by rising x.

    Memory is that of a record batch and a few numbers for each column.
    """
    points: dict[tuple[Place, ...], _Sums] = {}
    for draws in _by_point(places).values():
        points[draws] = _Sums(len(draws))
    for batch in table.to_batches():
        label_B = batch["label"].to_numpy()
        for draws, sums in points.items():
            sums.add([_value(batch[f"{stage}|{it.column}"], label_B, it) for it in draws])
    curves: dict[tuple[str, str, str], list[tuple[Place, RobustnessPoint]]] = {}
    for draws, sums in points.items():
        first = draws[0]
        key = (first.test, first.variant, first.measure)
        curves.setdefault(key, []).append((first, _point(stage, draws, sums)))
    return tuple(
        RobustnessCurve(
            test=found[0][0].test,
            variant=found[0][0].variant,
            model=stage,
            measure=found[0][0].measure,
            axis=found[0][0].axis,
            points=tuple(point for _, point in sorted(found, key=lambda pair: pair[1].x)),
        )
        for found in curves.values()
    )


def corruption_errors(
    curves: Sequence[RobustnessCurve], reference: str | None
) -> tuple[CorruptionError, ...]:
    """Errors of each model under corruptions, and over those of the reference.

    A corruption under which the reference makes no error at all is left out of the ratio.
    """
    errors: dict[str, dict[str, float]] = {}
    for curve in curves:
        if curve.test == "corruption":
            wrong = [1.0 - point.mean for point in curve.points]
            errors.setdefault(curve.model, {})[curve.variant] = sum(wrong) / len(wrong)
    yardstick = errors.get(reference or "")
    return tuple(
        CorruptionError(
            model=model,
            errors=found,
            mean_error=sum(found.values()) / len(found),
            relative_to=None if yardstick is None else reference,
            mce_ratio=None if yardstick is None else _relative(found, yardstick),
        )
        for model, found in errors.items()
    )


def _relative(found: Mapping[str, float], yardstick: Mapping[str, float]) -> float | None:
    """Mean ratio of errors over the corruptions that both have."""
    ratios = [found[name] / yardstick[name] for name in found if yardstick.get(name)]
    return sum(ratios) / len(ratios) if ratios else None


@dataclass
class _Sums:
    """Of one point, over images: of their means over draws, of the squares, and of each draw."""

    draws: int
    images: int = 0
    mean: float = 0.0
    square: float = 0.0
    by_draw: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.by_draw = np.zeros(self.draws)

    def add(self, columns: Sequence[np.ndarray]) -> None:
        """Values of some images for each draw; NaN where an image is not measured."""
        value_SB = np.stack(columns)
        value_SB = value_SB[:, ~np.isnan(value_SB[0])]
        mean_B = value_SB.mean(axis=0)
        self.images += len(mean_B)
        self.mean += float(mean_B.sum())
        self.square += float((mean_B**2).sum())
        self.by_draw += value_SB.sum(axis=1)


def _by_point(places: Iterable[Place]) -> dict[Place, tuple[Place, ...]]:
    """Draws of each point together."""
    found: dict[Place, tuple[Place, ...]] = {}
    for place in places:
        point = place._replace(draw=0)
        found[point] = (*found.get(point, ()), place)
    return found


def _value(column: pa.Array, label_B: np.ndarray, place: Place) -> np.ndarray:
    """1 for a right answer, 0 for a wrong one, NaN for none; numbers as they are."""
    if place.measure != "top1_ratio":
        numbers_B: np.ndarray = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return numbers_B
    answer_B = column.to_numpy(zero_copy_only=False)
    right_B = (answer_B == label_B).astype(np.float64)
    return np.where(column.is_valid().to_numpy(zero_copy_only=False), right_B, np.nan)


def _point(stage: str, draws: Sequence[Place], sums: _Sums) -> RobustnessPoint:
    first = draws[0]
    mean, square = sums.mean / sums.images, sums.square / sums.images
    of_shares = first.measure == "top1_ratio"
    interval = share_interval if of_shares else _number_interval
    low, high = interval(mean, square, images=sums.images, draws=len(draws))
    return RobustnessPoint(
        x=first.x,
        label=first.label,
        images=sums.images,
        mean=mean,
        low=low,
        high=high,
        draws=tuple(float(value) for value in sums.by_draw / sums.images),
        columns=tuple(f"{stage}|{place.column}" for place in draws),
    )


def share_interval(mean: float, square: float, *, images: int, draws: int) -> tuple[float, float]:
    """95 % score interval of a share over images, each of which was drawn several times.

    Answers to one image go together, so they do not count as so many images. The number that counts
    is that of single draws whose mean would spread as much (the design effect of clusters; Korn &
    Graubard 1998): with one draw it is Wilson's interval.

    Args:
        mean: Over images, of each image's mean over draws.
        square: Likewise, of the square of that mean.
        images: How many.
        draws: Of each.
    """
    spread = square - mean**2
    single = mean * (1.0 - mean)
    if single <= 0.0:
        effective = float(images)
    else:
        effective = float(images * min(draws, single / max(spread, single / draws)))
    return wilson_interval(effective * mean, effective)


def _number_interval(
    mean: float,
    square: float,
    *,
    images: int,
    draws: int,  # noqa: ARG001
) -> tuple[float, float]:
    """Mean and 1.96 standard errors over images."""
    half = _Z_95 * math.sqrt(max(0.0, square - mean**2) / images)
    return mean - half, mean + half
