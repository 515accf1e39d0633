"""Tables of comparisons: which of several models is better on the same images."""

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
from pipeline.evaluation.report.sources import Document
from schemas.comparison import COMPARISON_FILE, ComparisonReport
from schemas.report_page import Row, Table
from schemas.runs import InputArtifact

COMPARISONS = (
    "Models by their answers to the same images: what tells two of them apart are the images that "
    "one answers right and the other does not."
)
_LEVEL = 0.05


def comparison_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Every two models."""
    report = Document.read(source, COMPARISON_FILE, ComparisonReport)
    head = (
        *names("first", "second"),
        *main("difference"),
        *amounts("95 % interval", "first alone", "second alone", "McNemar p", "Holm p"),
        *words("verdict"),
    )
    return (
        Table(
            title=f"{source.stage}: first less second",
            note="Top-1 in percentage points with the interval of a paired bootstrap over images; "
            "images that one alone answers right; "
            "the exact two-sided p of McNemar's test, and the same adjusted for all pairs of the "
            "table (Holm), which the verdict goes by.",
            columns=head,
            rows=tuple(_pair_row(report, place) for place in range(len(report.at("pairs")))),
        ),
    )


def _pair_row(report: Document, place: int) -> Row:
    pair = ("pairs", place)
    low, high = (report.number(*pair, f"{end}_ratio", unit="points") for end in ("low", "high"))
    return row(
        [
            text(report.at(*pair, "first")),
            text(report.at(*pair, "second")),
            numbers(report.number(*pair, "difference_ratio", unit="points")),
            interval(low, high),
            numbers(report.number(*pair, "only_first_correct", unit="count")),
            numbers(report.number(*pair, "only_second_correct", unit="count")),
            numbers(report.number(*pair, "mcnemar_p", unit="plain")),
            numbers(report.number(*pair, "holm_p", unit="plain")),
            text(_verdict(report, place)),
        ]
    )


def _verdict(report: Document, place: int) -> str:
    pair = report.at("pairs", place)
    if pair["holm_p"] > _LEVEL:
        return "not told apart"
    return "first is ahead" if pair["difference_ratio"] > 0 else "second is ahead"
