"""Means and paired differences over the variants of a matrix, as tables."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation import study
from pipeline.evaluation.report.cells import (
    amounts,
    computed,
    interval,
    main,
    names,
    numbers,
    row,
    text,
    words,
)
from pipeline.evaluation.report.measured import measured, trace_in
from pipeline.evaluation.report.words import in_words
from schemas.report import AccuracyRow, DifferenceRow, MeanRow
from schemas.report_page import Cell, Headline, Number, Row, Table, Trace, Unit

Rows = Sequence[AccuracyRow]


def means_table(rows: Rows) -> tuple[Table, ...]:
    """Means of the methods that were measured in several variants."""
    means = study.means(rows)
    if not means:
        return ()
    head = (
        *names("stage"),
        *words("method"),
        *main("mean"),
        *amounts("95 % interval", "variants"),
        *words("each"),
    )
    return (
        Table(
            title="Over the variants",
            note="Mean top-1 over the variants of the matrix, with the 95 % t-interval of the "
            "mean. It takes the variants for independent repetitions.",
            columns=head,
            rows=tuple(_mean_row(it, rows) for it in means),
        ),
    )


def _mean_row(mean: MeanRow, rows: Rows) -> Row:
    found = _variants(rows, mean.stage, mean.method, mean.variants)
    return row(
        [
            text(mean.stage),
            text(in_words(mean.method)),
            numbers(_mean_number(mean, rows)),
            _t_interval(mean, "ratio", _traces(found)),
            numbers(computed(len(found), "count", _traces(found), how="how many")),
            numbers(*(measured(it, "top1_ratio", "ratio") for it in found)),
        ]
    )


def differences_table(rows: Rows) -> tuple[Table, ...]:
    """Every two methods, paired by variant."""
    found = study.differences(rows)
    if not found:
        return ()
    head = (
        *names("first", "second"),
        *main("difference"),
        *amounts("95 % interval", "variants"),
        *words("verdict"),
    )
    return (
        Table(
            title="Paired differences",
            note="First less second in percentage points, paired by variant on the same images, "
            "with the 95 % t-interval of the mean. Each interval stands alone: none is widened "
            "for the number of pairs.",
            columns=head,
            rows=tuple(_difference_row(it, rows) for it in found),
        ),
    )


def _difference_row(difference: DifferenceRow, rows: Rows) -> Row:
    methods = {study.label(study.split_name(it.stage).stage, it.method): it for it in rows}
    pair = [methods[name] for name in (difference.first, difference.second)]
    firsts, seconds = (
        _variants(rows, study.split_name(it.stage).stage, it.method, difference.variants)
        for it in pair
    )
    traces = _traces([*firsts, *seconds])
    return row(
        [
            text(in_words(difference.first)),
            text(in_words(difference.second)),
            numbers(
                computed(
                    difference.mean_ratio,
                    "points",
                    traces,
                    how="mean of the first half less mean of the second",
                )
            ),
            _t_interval(difference, "points", traces),
            numbers(computed(len(difference.variants), "count", traces, how="half of how many")),
            text(_verdict(difference.low_ratio, difference.high_ratio)),
        ]
    )


def mean_headline(mean: MeanRow, rows: Rows) -> Headline:
    """A mean at the top of a page."""
    traces = _traces(_variants(rows, mean.stage, mean.method, mean.variants))
    return Headline(
        title=study.label(mean.stage, in_words(mean.method)),
        number=_mean_number(mean, rows),
        measure=f"mean top-1 of {len(mean.variants)} variants, 95 % interval",
        detail=_t_interval(mean, "ratio", traces),
    )


def _mean_number(mean: MeanRow, rows: Rows) -> Number:
    traces = _traces(_variants(rows, mean.stage, mean.method, mean.variants))
    return computed(mean.mean_ratio, "ratio", traces, how="mean")


def _t_interval(of: MeanRow | DifferenceRow, unit: Unit, traces: Sequence[Trace]) -> Cell:
    return interval(
        computed(of.low_ratio, unit, traces, how="low end of the t-interval"),
        computed(of.high_ratio, unit, traces, how="high end of the t-interval"),
    )


def _traces(rows: Rows) -> list[Trace]:
    return [trace_in(it, f"/accuracies/{it.place}/top1_ratio") for it in rows]


def _variants(rows: Rows, stage: str, method: str, variants: Sequence[str]) -> list[AccuracyRow]:
    """The rows of one method of a stage, in the order of `variants`."""
    by_variant: Mapping[str | None, AccuracyRow] = {
        study.split_name(it.stage).variant: it
        for it in rows
        if (study.split_name(it.stage).stage, it.method) == (stage, method)
    }
    return [by_variant[variant] for variant in variants]


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "first is ahead"
    return "second is ahead" if high < 0 else "not told apart"
