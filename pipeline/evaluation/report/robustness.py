"""What a page says in numbers of models whose images were changed, beside the curves."""

from collections.abc import Mapping

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
from schemas.report_page import Row, Table, Unit
from schemas.robustness_report import ROBUSTNESS_FILE, Measure, RobustnessReport
from schemas.runs import InputArtifact

_MEASURES: Mapping[Measure, str] = {
    "top1_ratio": "top-1",
    "correlation": "correlation of features",
    "dropped_ratio": "patches dropped",
}
ROBUSTNESS = (
    "What models still recognise when images are changed, or a part of what a block is given is "
    "gone. Intervals of the curves are in the figures; every answer to every changed image is in "
    "the artifact."
)


def robustness_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Clean accuracy and errors of each model, every curve, and what is absent."""
    report = Document.read(source, ROBUSTNESS_FILE, RobustnessReport)
    return (
        _models_table(source, report),
        *_errors_table(source, report),
        *_curves_tables(source, report),
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


def _curves_tables(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    """Curves of a test that were measured at equal strengths share a table."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, curve in enumerate(report.at("curves")):
        labels = (it["label"] for it in curve["points"])
        groups.setdefault((curve["test"], curve["axis"], *labels), []).append(place)
    return tuple(
        Table(
            title=f"{source.stage}: {in_words(test)}, by {axis}",
            columns=(*names("change", "model"), *words("measure"), *amounts(*labels)),
            rows=tuple(_curve_row(report, place) for place in places),
            folded=True,
        )
        for (test, axis, *labels), places in groups.items()
    )


def _curve_row(report: Document, place: int) -> Row:
    curve = ("curves", place)
    measure = report.at(*curve, "measure")
    unit: Unit = "plain" if measure == "correlation" else "ratio"
    means = [
        numbers(report.number(*curve, "points", point, "mean", unit=unit))
        for point in range(len(report.at(*curve, "points")))
    ]
    labels = [text(report.at(*curve, name) or "-") for name in ("variant", "model")]
    return row([*labels, text(_MEASURES[measure]), *means])


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
