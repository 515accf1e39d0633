"""Tables of probes: what simple methods make of frozen features."""

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
from pipeline.evaluation.report.words import in_words
from schemas.probing import PROBE_FILE, ProbeReport
from schemas.report_page import Cell, Row, Table
from schemas.runs import InputArtifact

PROBES = (
    "What simple methods make of the frozen features of a model. Everything is learned from the "
    "training split; each measured image counts once."
)


def probe_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Few-shot accuracy by shots, and the methods that learn from all of the training split."""
    report = Document.read(source, PROBE_FILE, ProbeReport)
    return (*_shots_table(source, report), *_methods_table(source, report))


def _shots_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    means = report.at("few_shot_means")
    if not means:
        return ()
    head = (
        *amounts("images of a class"),
        *main("mean top-1"),
        *amounts("95 % interval", "draws"),
        *words("each draw"),
    )
    return (
        Table(
            title=f"{source.stage}: few shots",
            note="Regularised least squares on whitened features; the interval is that of the mean "
            "over draws of the training images, the measured images given.",
            columns=head,
            rows=tuple(_shots_row(report, place) for place in range(len(means))),
        ),
    )


def _shots_row(report: Document, place: int) -> Row:
    mean = ("few_shot_means", place)
    shots = report.at(*mean, "shots")
    draws = [at for at, it in enumerate(report.at("few_shot")) if it["shots"] == shots]
    return row(
        [
            numbers(report.number(*mean, "shots", unit="count")),
            numbers(report.number(*mean, "mean_ratio", unit="ratio")),
            _mean_interval(report, place),
            numbers(report.number(*mean, "draws", unit="count")),
            numbers(
                *(
                    report.number("few_shot", at, "accuracy", "top1_ratio", unit="ratio")
                    for at in draws
                )
            ),
        ]
    )


def _mean_interval(report: Document, place: int) -> Cell:
    """A single draw has none."""
    mean = ("few_shot_means", place)
    if report.at(*mean, "low_ratio") is None:
        return text("-")
    low, high = (report.number(*mean, f"{end}_ratio", unit="ratio") for end in ("low", "high"))
    return interval(low, high)


def _methods_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    if not report.at("accuracies"):
        return ()
    head = (*names("method"), *main("top-1"), *amounts("95 % interval", "correct", "images"))
    return (
        Table(
            title=f"{source.stage}: all of the training split",
            columns=head,
            rows=tuple(_method_row(report, place) for place in range(len(report.at("accuracies")))),
        ),
        *_chosen_table(source, report),
    )


def _chosen_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    """What was chosen on training images alone."""
    chosen = report.at("chosen")
    if not chosen:
        return ()
    return (
        Table(
            title=f"{source.stage}: chosen on training labels alone",
            columns=(*words("setting"), *amounts("value")),
            rows=tuple(
                row([text(in_words(it)), numbers(report.number("chosen", it, unit="plain"))])
                for it in chosen
            ),
            folded=True,
        ),
    )


def _method_row(report: Document, place: int) -> Row:
    method = ("accuracies", place)
    low, high = (report.number(*method, f"{end}_ratio", unit="ratio") for end in ("low", "high"))
    return row(
        [
            text(in_words(report.at(*method, "method"))),
            numbers(report.number(*method, "top1_ratio", unit="ratio")),
            interval(low, high),
            numbers(report.number(*method, "correct", unit="count")),
            numbers(report.number(*method, "total", unit="count")),
        ]
    )
