"""Section `accuracy`: what was measured on which images, alone and over variants of a matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation import figures, study
from pipeline.evaluation.report.answers import detail_tables
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
from pipeline.evaluation.report.sources import of_kinds
from pipeline.evaluation.report.words import in_words
from pipeline.evaluation.tables import ACCURACY_FILE, accuracy_rows
from schemas.report import FIGURES_FOLDER, AccuracyRow, DifferenceRow, MeanRow
from schemas.report_page import (
    Cell,
    Headline,
    Number,
    Row,
    Section,
    ShownFigure,
    Table,
    Trace,
    Unit,
)
from schemas.runs import InputArtifact

KINDS = ("evaluate", "baseline")
_MOST_BARS = 40
_MOST_OPEN = 12
"""Rows of single results that stand open where a study sums them up."""
_MOST_HEADLINES = 6
_MOST_DETAILED = 6
"""Stages whose classes and mistakes get tables; those of a large study would be a book."""

Rows = Sequence[AccuracyRow]


def read_rows(sources: Sequence[InputArtifact]) -> tuple[AccuracyRow, ...]:
    """Every measured method, in the order of the sources."""
    return tuple(found for it in of_kinds(sources, *KINDS) for found in accuracy_rows(it))


def headlines(rows: Rows) -> tuple[Headline, ...]:
    """The first models and baselines; over a matrix their means."""
    means = study.means(rows)
    if means:
        return tuple(_mean_headline(it, rows) for it in means[:_MOST_HEADLINES])
    return tuple(_headline(it) for it in rows[:_MOST_HEADLINES])


def accuracy_section(
    folder: Path, sources: Sequence[InputArtifact], rows: Rows, drawn: Sequence[ShownFigure]
) -> Section:
    """All tables; draws the bars into `folder`. `drawn` are the figures of the stages."""
    measured = of_kinds(sources, *KINDS)
    details = measured if len(measured) <= _MOST_DETAILED else []
    return Section(
        name="accuracy",
        title="Accuracy",
        intro="Share of images whose class was named correctly (top-1), each image of the split "
        "counted once, with the 95 % Wilson score interval.",
        tables=(
            *_means_table(rows),
            *_differences_table(rows),
            *_measured_table(rows),
            *_chosen_table(rows),
            *(table for it in details for table in detail_tables(it)),
        ),
        figures=(*_draw_bars(folder, rows), *drawn),
    )


def _measured_table(rows: Rows) -> tuple[Table, ...]:
    if not rows:
        return ()
    head = (
        *names("stage"),
        *words("method"),
        *main("top-1"),
        *amounts("95 % interval", "correct", "images"),
        *words("split"),
    )
    return (
        Table(
            title="Top-1",
            columns=head,
            rows=tuple(map(_measured_row, rows)),
            folded=len(rows) > _MOST_OPEN and bool(study.means(rows)),
        ),
    )


def _measured_row(found: AccuracyRow) -> Row:
    return row(
        [
            text(found.stage),
            text(in_words(found.method)),
            numbers(_number(found, "top1_ratio", "ratio")),
            _interval(found),
            numbers(_number(found, "correct", "count")),
            numbers(_number(found, "total", "count")),
            text(found.split),
        ],
        found.artifact,
    )


def _chosen_table(rows: Rows) -> tuple[Table, ...]:
    chosen = [
        row(
            [
                text(study.label(found.stage, in_words(found.method))),
                text(in_words(name)),
                numbers(_chosen(found, name)),
            ]
        )
        for found in rows
        for name in found.chosen
    ]
    if not chosen:
        return ()
    return (
        Table(
            title="Chosen on training labels alone",
            columns=(*names("method"), *words("setting"), *amounts("value")),
            rows=tuple(chosen),
            folded=True,
        ),
    )


def _means_table(rows: Rows) -> tuple[Table, ...]:
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
    measured = _variants(rows, mean.stage, mean.method, mean.variants)
    return row(
        [
            text(mean.stage),
            text(in_words(mean.method)),
            numbers(_mean_number(mean, rows)),
            _t_interval(mean, "ratio", _traces(measured)),
            numbers(computed(len(measured), "count", _traces(measured), how="how many")),
            numbers(*(_number(it, "top1_ratio", "ratio") for it in measured)),
        ]
    )


def _differences_table(rows: Rows) -> tuple[Table, ...]:
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


def _draw_bars(folder: Path, rows: Rows) -> tuple[ShownFigure, ...]:
    """One bar for each row; with very many variants the tables say more than a chart."""
    if not 0 < len(rows) <= _MOST_BARS:
        return ()
    bars = [
        figures.Bar(
            label=study.label(it.stage, in_words(it.method)),
            ratio=it.top1_ratio,
            low=it.low_ratio,
            high=it.high_ratio,
            group=study.label(study.split_name(it.stage).stage, it.method),
        )
        for it in rows
    ]
    groups = list(dict.fromkeys(it.group for it in bars))
    bars.sort(key=lambda it: groups.index(it.group))  # variants of a stage stand together
    figures.draw_accuracies(folder / FIGURES_FOLDER / "accuracy.png", bars)
    return (
        ShownFigure(
            file="accuracy.png",
            title="Accuracy with 95 % intervals",
            caption="Top-1 of each method on its test images; the whiskers are Wilson intervals.",
            artifacts=tuple(dict.fromkeys(it.artifact for it in rows)),
        ),
    )


def _headline(found: AccuracyRow) -> Headline:
    return Headline(
        title=study.label(found.stage, in_words(found.method)),
        number=_number(found, "top1_ratio", "ratio"),
        measure=f"top-1 on {found.split}, 95 % interval",
        detail=_interval(found),
    )


def _mean_headline(mean: MeanRow, rows: Rows) -> Headline:
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


def _interval(found: AccuracyRow) -> Cell:
    return interval(_number(found, "low_ratio", "ratio"), _number(found, "high_ratio", "ratio"))


def _number(found: AccuracyRow, name: str, unit: Unit) -> Number:
    trace = _trace(found, f"/accuracies/{found.place}/{name}")
    return Number(value=getattr(found, name), unit=unit, traces=(trace,))


def _chosen(found: AccuracyRow, name: str) -> Number:
    trace = _trace(found, f"/chosen/{found.method}.{name}")
    return Number(value=found.chosen[name], unit="plain", traces=(trace,))


def _trace(found: AccuracyRow, where: str) -> Trace:
    return Trace(artifact=found.artifact, file=ACCURACY_FILE, where=where)


def _traces(rows: Rows) -> list[Trace]:
    return [_trace(it, f"/accuracies/{it.place}/top1_ratio") for it in rows]


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
