"""One page about other stages: `report.html`, `report.md` and, for programs, `report.json`.

The page is one file without links to anything outside, so that it can be mailed. Nothing in it
depends on the clock or on where the workspace lies. Equal artifacts give equal bytes, but for the
sections `cost` and `reproduce`, which tell what the records say of how they were made.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.report import training
from pipeline.evaluation.report.accuracy import KINDS as MEASURED
from pipeline.evaluation.report.accuracy import accuracy_section, headlines, read_rows
from pipeline.evaluation.report.data import data_section
from pipeline.evaluation.report.html import lineage_svg, page
from pipeline.evaluation.report.lineage import lineage, picture
from pipeline.evaluation.report.making import cost_section, reproduce_section
from pipeline.evaluation.report.markdown import LINEAGE_FILE, markdown
from pipeline.evaluation.report.others import own_sections
from pipeline.evaluation.report.pictures import copy_figures
from pipeline.evaluation.report.sources import Origin, of_kinds
from pipeline.evaluation.tables import baseline_notes
from schemas.report import FIGURES_FOLDER
from schemas.report_page import ReportDocument, Section, ShownFigure
from schemas.runs import InputArtifact
from schemas.spec import canonical_json
from schemas.stage import SHARD_SETS

REPORT_PAGE = "report.html"
REPORT_TEXT = "report.md"
REPORT_DOCUMENT = "report.json"


def write_report(
    folder: Path, *, title: str, sources: Sequence[InputArtifact], origin: Origin
) -> ReportDocument:
    """Write page, Markdown, document and figures; tables are in the order of `sources`.

    Raises:
        IntegrityError: If an artifact lacks a document that its kind must have.
    """
    document = _build(folder, title=title, sources=sources, origin=origin)
    figures = folder / FIGURES_FOLDER
    (figures / LINEAGE_FILE).write_text(lineage_svg(picture(document.lineage)), encoding="utf-8")
    (folder / REPORT_DOCUMENT).write_text(canonical_json(document.dump()) + "\n", encoding="utf-8")
    (folder / REPORT_TEXT).write_text(markdown(document), encoding="utf-8")
    (folder / REPORT_PAGE).write_text(page(document, figures), encoding="utf-8")
    return document


def _build(
    folder: Path, *, title: str, sources: Sequence[InputArtifact], origin: Origin
) -> ReportDocument:
    rows = read_rows(sources)
    artifacts = lineage(sources, origin.made)
    trained = of_kinds(sources, *training.KINDS)
    points = {it.stage: training.read_points(it) for it in trained}

    def drawn(*kinds: str, folded: bool) -> tuple[ShownFigure, ...]:
        return copy_figures(folder, of_kinds(sources, *kinds), folded=folded)

    sections = [
        accuracy_section(folder, sources, rows, drawn(*MEASURED, folded=True)),
        *own_sections(folder, sources),
        training.training_section(folder, sources, points, drawn(*training.KINDS, folded=False)),
        data_section(sources, drawn(*SHARD_SETS, folded=True)),
    ]
    if origin.made:  # artifacts that lie outside of a store have no records
        sections += [
            cost_section(folder, origin, artifacts=artifacts, trained=trained, points=points),
            reproduce_section(origin, artifacts),
        ]
    return ReportDocument(
        title=title,
        experiment=origin.experiment,
        headlines=headlines(rows),
        notes=baseline_notes(rows),
        lineage=artifacts,
        sections=tuple(it for it in sections if _says_something(it)),
    )


def _says_something(section: Section) -> bool:
    return any((section.tables, section.figures, section.blocks))
