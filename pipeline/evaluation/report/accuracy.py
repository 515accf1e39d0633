"""Section `accuracy`: what was measured on which images, alone and over variants of a matrix."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation import figures, study
from pipeline.evaluation.report.answers import detail_tables
from pipeline.evaluation.report.calibration import model_tables
from pipeline.evaluation.report.cells import (
    amounts,
    interval,
    main,
    names,
    numbers,
    row,
    text,
    words,
)
from pipeline.evaluation.report.measured import measured, trace_in
from pipeline.evaluation.report.sources import of_kinds
from pipeline.evaluation.report.variants import differences_table, mean_headline, means_table
from pipeline.evaluation.report.words import in_words
from pipeline.evaluation.tables import accuracy_rows
from schemas.report import FIGURES_FOLDER, AccuracyRow
from schemas.report_page import (
    Cell,
    Headline,
    Number,
    Row,
    Section,
    ShownFigure,
    Table,
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
        return tuple(mean_headline(it, rows) for it in means[:_MOST_HEADLINES])
    return tuple(_headline(it) for it in rows[:_MOST_HEADLINES])


def accuracy_section(
    folder: Path, sources: Sequence[InputArtifact], rows: Rows, drawn: Sequence[ShownFigure]
) -> Section:
    """All tables; draws the bars into `folder`. `drawn` are the figures of the stages."""
    stages = of_kinds(sources, *KINDS)
    details = stages if len(stages) <= _MOST_DETAILED else []
    return Section(
        name="accuracy",
        title="Accuracy",
        intro="Share of images whose class was named correctly (top-1), each image of the split "
        "counted once, with the 95 % Wilson score interval.",
        tables=(
            *means_table(rows),
            *differences_table(rows),
            *_measured_table(rows),
            *model_tables(of_kinds(sources, "evaluate")),
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
            numbers(measured(found, "top1_ratio", "ratio")),
            _interval(found),
            numbers(measured(found, "correct", "count")),
            numbers(measured(found, "total", "count")),
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
        number=measured(found, "top1_ratio", "ratio"),
        measure=f"top-1 on {found.split}, 95 % interval",
        detail=_interval(found),
    )


def _interval(found: AccuracyRow) -> Cell:
    return interval(measured(found, "low_ratio", "ratio"), measured(found, "high_ratio", "ratio"))


def _chosen(found: AccuracyRow, name: str) -> Number:
    trace = trace_in(found, f"/chosen/{found.method}.{name}")
    return Number(value=found.chosen[name], unit="plain", traces=(trace,))
