"""Which classes a model or a baseline answers wrong, and how.

Axes: K classes.
"""

import numpy as np

from pipeline.evaluation import study
from pipeline.evaluation.report.cells import amounts, computed, names, numbers, row, text
from pipeline.evaluation.report.sources import Document
from pipeline.evaluation.report.words import in_words
from pipeline.evaluation.tables import ACCURACY_FILE
from schemas.evaluation import AccuracyReport
from schemas.report_page import Number, Table
from schemas.runs import InputArtifact

_MOST_CLASSES = 60
_MOST_MISTAKES = 10


def detail_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Each class, and the most frequent mistakes of each method."""
    document = Document.read(source, ACCURACY_FILE, AccuracyReport)
    report = AccuracyReport.parse(document.content)
    mistakes = [_mistakes_table(source, document, report, method) for method in report.confusion]
    return (_classes_table(source, document, report), *filter(None, mistakes))


def _classes_table(source: InputArtifact, document: Document, report: AccuracyReport) -> Table:
    """Classes that have images, those answered worst by the first method first."""
    methods = list(report.per_class)
    first = report.per_class[methods[0]]
    worst = sorted(first, key=lambda name: (first[name], name))
    return Table(
        title=f"{source.stage}: each class",
        note=f"The {_MOST_CLASSES} classes answered worst, of {len(worst):,}."
        if len(worst) > _MOST_CLASSES
        else "",
        columns=(*names("class"), *amounts("images"), *amounts(*map(in_words, methods))),
        rows=tuple(
            row(
                [
                    text(name),
                    numbers(_images_of(document, report, methods[0], name)),
                    *(
                        numbers(document.number("per_class", method, name, unit="ratio"))
                        for method in methods
                    ),
                ]
            )
            for name in worst[:_MOST_CLASSES]
        ),
        folded=True,
    )


def _images_of(document: Document, report: AccuracyReport, method: str, name: str) -> Number:
    place = ("confusion", method, report.class_names.index(name))
    return computed(sum(document.at(*place)), "count", [document.trace(*place)], how="sum")


def _mistakes_table(
    source: InputArtifact, document: Document, report: AccuracyReport, method: str
) -> Table | None:
    """The cells beside the diagonal with the most images."""
    wrong_KK = np.array(report.confusion[method])
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:_MOST_MISTAKES]
    places = [divmod(int(it), len(wrong_KK)) for it in order if wrong_KK.flat[it]]
    if not places:
        return None
    return Table(
        title=f"{study.label(source.stage, in_words(method))}: most frequent mistakes",
        columns=(*names("true class", "answer"), *amounts("images")),
        rows=tuple(
            row(
                [
                    text(report.class_names[true]),
                    text(report.class_names[answer]),
                    numbers(document.number("confusion", method, true, answer, unit="count")),
                ]
            )
            for true, answer in places
        ),
        folded=True,
    )
