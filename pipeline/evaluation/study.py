"""Means and paired differences over the variants of a matrix; values in, values out.

The intervals treat the variants as independent repetitions, which seeds are. Over variants that are
different treatments (positions, sizes) a mean says little; the table of single results stands
beside it. Intervals are not adjusted for the number of pairs compared.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats  # type: ignore[import-untyped]  # SciPy ships no types

from schemas.report import AccuracyRow, DifferenceRow, MeanRow


class VariantName(NamedTuple):
    """The name of a stage, taken apart: `stage[axis=value]`."""

    stage: str
    variant: str | None


def split_name(name: str) -> VariantName:
    """Take the variant off the name of a stage."""
    stage, bracket, rest = name.partition("[")
    return VariantName(stage, rest.removesuffix("]") if bracket else None)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean of at least two values.

    Raises:
        ValueError: If there are fewer than two values, which have no spread.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"a t-interval needs at least 2 values but got {count}")
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return mean - half, mean + half


def means(rows: Sequence[AccuracyRow]) -> tuple[MeanRow, ...]:
    """One row for each (stage, method) that was measured in two variants or more."""
    return tuple(
        _mean_row(stage, method, measured)
        for (stage, method), measured in _by_variant(rows).items()
        if len(measured) >= 2
    )


def differences(rows: Sequence[AccuracyRow]) -> tuple[DifferenceRow, ...]:
    """First less second for every pair of (stage, method) that shares two variants or more.

    A variant is shared if both were measured in it on the same images.
    """
    found = []
    for first, second in itertools.combinations(_by_variant(rows).items(), 2):
        gaps = _shared_gaps(first[1], second[1])
        if len(gaps) >= 2:
            found.append(_difference_row(label(*first[0]), label(*second[0]), gaps))
    return tuple(found)


def label(stage: str, method: str) -> str:
    """What a table calls a method of a stage."""
    return stage if method == "model" else f"{stage}: {method}"


def _by_variant(rows: Sequence[AccuracyRow]) -> dict[tuple[str, str], dict[str, AccuracyRow]]:
    """(Stage, method) -> variant -> what was measured; stages without variants are left out."""
    grouped: dict[tuple[str, str], dict[str, AccuracyRow]] = {}
    for row in rows:
        stage, variant = split_name(row.stage)
        if variant is not None:
            grouped.setdefault((stage, row.method), {})[variant] = row
    return grouped


def _shared_gaps(first: dict[str, AccuracyRow], second: dict[str, AccuracyRow]) -> dict[str, float]:
    return {
        variant: row.top1_ratio - second[variant].top1_ratio
        for variant, row in first.items()
        if variant in second and row.test_set == second[variant].test_set
    }


def _mean_row(stage: str, method: str, measured: dict[str, AccuracyRow]) -> MeanRow:
    values = tuple(row.top1_ratio for row in measured.values())
    low, high = t_interval(values)
    return MeanRow(
        stage=stage,
        method=method,
        variants=tuple(measured),
        top1_ratios=values,
        mean_ratio=math.fsum(values) / len(values),
        low_ratio=low,
        high_ratio=high,
    )


def _difference_row(first: str, second: str, gaps: dict[str, float]) -> DifferenceRow:
    low, high = t_interval(tuple(gaps.values()))
    return DifferenceRow(
        first=first,
        second=second,
        variants=tuple(gaps),
        mean_ratio=math.fsum(gaps.values()) / len(gaps),
        low_ratio=low,
        high_ratio=high,
    )
