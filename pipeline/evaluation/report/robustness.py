"""What a page says in numbers of models whose images were changed, beside the curves."""

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
from schemas.report_page import Cell, Row, Table, Unit
from schemas.robustness_report import ROBUSTNESS_FILE, RobustnessReport
from schemas.runs import InputArtifact

ROBUSTNESS = (
    "What models still recognise when images are changed, or a part of what a block is given is "
    "gone. Every answer to every changed image is in the artifact."
)


def robustness_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Clean accuracy and errors of each model, the ends of each curve, and what is absent."""
    report = Document.read(source, ROBUSTNESS_FILE, RobustnessReport)
    return (
        _models_table(source, report),
        *_errors_table(source, report),
        _curves_table(source, report),
        *_absent_table(source, report),
    )


def _models_table(source: InputArtifact, report: Document) -> Table:
    ratios = ("top1_ratio", "low_ratio", "high_ratio")
    rows = []
    for index, model in enumerate(report.at("models")):
        mean, low, high = (
            report.number("models", index, "clean", name, unit="ratio") for name in ratios
        )
        passes = report.number("models", index, "passes_per_image", unit="plain")
        shown = [text(model["stage"]), numbers(mean), interval(low, high), numbers(passes)]
        rows.append(row(shown))
    return Table(
        title=f"{source.stage}: images as they are",
        note=f"{report.at('images')} images of {report.at('data')}@{report.at('split')}. A "
        "gradient counts three passes.",
        columns=(
            *names("model"),
            *main("top-1"),
            *amounts("95 % interval", "passes for each image"),
        ),
        rows=tuple(rows),
    )


def _errors_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    rows = []
    for index, found in enumerate(report.at("corruptions")):
        relative = text("-")
        if found["mce_ratio"] is not None:
            relative = numbers(report.number("corruptions", index, "mce_ratio", unit="ratio"))
        error = numbers(report.number("corruptions", index, "mean_error", unit="ratio"))
        reference = text(found["relative_to"] or "-")
        rows.append(row([text(found["model"]), error, relative, reference]))
    head = (
        *names("model"),
        *main("mean error"),
        *amounts("over the reference's"),
        *names("reference"),
    )
    note = "Over the corruptions and severities that were measured: not the published mCE."
    title = f"{source.stage}: errors under corruptions"
    return (Table(title=title, note=note, columns=head, rows=tuple(rows)),) if rows else ()


def _curves_table(source: InputArtifact, report: Document) -> Table:
    head = ("at", "weakest", "95 % interval", "at", "strongest", "95 % interval")
    return Table(
        title=f"{source.stage}: ends of the curves",
        note="Top-1 accuracy, correlation of features, or share of patches dropped, at the first "
        "and the last point.",
        columns=(*words("test", "change"), *names("model"), *amounts(*head)),
        rows=tuple(_curve_row(report, index) for index in range(len(report.at("curves")))),
        folded=True,
    )


def _curve_row(report: Document, index: int) -> Row:
    curve = report.at("curves", index)
    ends = (0, len(curve["points"]) - 1)
    cells = [cell for point in ends for cell in _point(report, index, point)]
    said = (in_words(curve["test"]), in_words(curve["variant"]), curve["model"])
    return row([*map(text, said), *cells])


def _point(report: Document, curve: int, point: int) -> list[Cell]:
    place = ("curves", curve, "points", point)
    unit: Unit = "plain" if report.at("curves", curve, "measure") == "correlation" else "ratio"
    mean, low, high = (report.number(*place, name, unit=unit) for name in ("mean", "low", "high"))
    return [text(report.at(*place, "label")), numbers(mean), interval(low, high)]


def _absent_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    rows = tuple(
        row(
            [
                text(in_words(it["test"])),
                text(it["model"] or "-"),
                text(it["what"]),
                text(it["reason"]),
            ],
            source.artifact,
        )
        for it in report.at("absent")
    )
    head = (*words("test"), *names("model"), *words("what", "why it is not there"))
    return (Table(title=f"{source.stage}: not measured", columns=head, rows=rows),) if rows else ()
