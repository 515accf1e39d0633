"""What `evaluate` says of a model beyond top-1."""

from collections.abc import Sequence

from pipeline.evaluation.report.cells import amounts, interval, main, names, numbers, row, text
from pipeline.evaluation.report.sources import Document
from pipeline.evaluation.tables import ACCURACY_FILE
from schemas.evaluation import AccuracyReport
from schemas.report_page import Cell, Row, Table
from schemas.runs import InputArtifact

MODEL = "model"


def model_tables(measured: Sequence[InputArtifact]) -> tuple[Table, ...]:
    """Probabilities, right classes out of several, and sizes of images, of all evaluations."""
    reports = {it.stage: Document.read(it, ACCURACY_FILE, AccuracyReport) for it in measured}
    models = {stage: it for stage, it in reports.items() if it.at(MODEL) is not None}
    return (
        *_table(
            "Probabilities",
            "Top-5 and its Wilson interval; the mean over classes of the share of their images "
            "that are answered right; mean negative log-likelihood in nats; Brier score; expected "
            "calibration error over 15 bins of equal width.",
            ("top-5", "95 % interval", "mean over classes", "NLL", "Brier", "calibration error"),
            [_model_row(stage, it) for stage, it in models.items()],
        ),
        *_table(
            "Several right classes",
            "An answer is right if it is one of the classes that the file names for its image; "
            "images without any are left out.",
            ("top-1", "95 % interval", "images", "left out", "not in the file"),
            [_sets_row(stage, it) for stage, it in models.items() if it.at(MODEL, "label_sets")],
        ),
        *_table(
            "Other sizes of images",
            "The model's positions are resized to the grid of each size.",
            ("height px", "width px", "top-1", "95 % interval", "NLL"),
            [found for stage, it in models.items() for found in _size_rows(stage, it)],
        ),
    )


def _table(title: str, note: str, columns: Sequence[str], rows: Sequence[Row]) -> tuple[Table, ...]:
    if not rows:
        return ()
    head = tuple(it for name in columns for it in (main if name == "top-1" else amounts)(name))
    return (Table(title=title, note=note, columns=(*names("stage"), *head), rows=tuple(rows)),)


def _model_row(stage: str, report: Document) -> Row:
    top5 = _share(report, "top5")
    rest = [
        numbers(report.number(MODEL, "class_mean_ratio", unit="ratio")),
        numbers(report.number(MODEL, "nll", unit="loss")),
        numbers(report.number(MODEL, "brier", unit="loss")),
        numbers(report.number(MODEL, "calibration", "ece_ratio", unit="ratio")),
    ]
    return row([text(stage), *top5, *rest])


def _sets_row(stage: str, report: Document) -> Row:
    sets = (MODEL, "label_sets")
    images = (*sets, "top1", "total")
    counted = [report.number(*images, unit="count")] if report.at(*sets, "top1") else []
    return row(
        [
            text(stage),
            *_share(report, "label_sets", "top1"),
            numbers(*counted),
            numbers(report.number(*sets, "left_out", unit="count")),
            numbers(report.number(*sets, "unnamed", unit="count")),
        ],
        report.artifact,
    )


def _size_rows(stage: str, report: Document) -> list[Row]:
    return [
        row(
            [
                text(stage),
                numbers(report.number(MODEL, "sizes", place, "image_px", 0, unit="count")),
                numbers(report.number(MODEL, "sizes", place, "image_px", 1, unit="count")),
                *_share(report, "sizes", place, "top1"),
                numbers(report.number(MODEL, "sizes", place, "nll", unit="loss")),
            ]
        )
        for place in range(len(report.at(MODEL, "sizes")))
    ]


def _share(report: Document, *place: str | int) -> list[Cell]:
    """A share and its interval; dashes where there is none, as top-5 of five classes."""
    if report.at(MODEL, *place) is None:
        return [text("-"), text("-")]
    share, low, high = (
        report.number(MODEL, *place, name, unit="ratio")
        for name in ("ratio", "low_ratio", "high_ratio")
    )
    return [numbers(share), interval(low, high)]
