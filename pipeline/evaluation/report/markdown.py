"""The page as Markdown, with figures as files beside it."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.report.words import cell_text, number_text
from schemas.report import FIGURES_FOLDER
from schemas.report_page import Block, PageArtifact, ReportDocument, Section, ShownFigure, Table

LINEAGE_FILE = "lineage.svg"

Known = Mapping[str, PageArtifact]


def markdown(document: ReportDocument) -> str:
    """All of the page; names that a user chose are escaped."""
    known = {it.artifact: it for it in document.lineage}
    return "\n".join(_lines(document, known)) + "\n"


def _lines(document: ReportDocument, known: Known) -> Iterator[str]:
    yield f"# {_escaped(document.title)}"
    yield ""
    yield f"Experiment {_escaped(document.experiment)}. Beside each number stands the artifact "
    yield "that it was read from, with the first digits of that artifact's content digest."
    if document.headlines:
        yield ""
        for it in document.headlines:
            chips = _chips([trace.artifact for trace in it.number.traces], known)
            detail = f"{it.measure} {cell_text(it.detail)}".strip()
            yield f"- **{_escaped(it.title)}**: {number_text(it.number)} ({detail}) {chips}"
    for note in document.notes:
        yield from ("", f"> {_escaped(note.text)} {_chips(note.artifacts, known)}")
    yield from ("", "## What was trained on what", "")
    yield f"![What was made from what]({FIGURES_FOLDER}/{LINEAGE_FILE})"
    for section in document.sections:
        yield from _section(section, known)
    yield from ("", "## Artifacts", "")
    yield from _artifacts(document.lineage, known)


def _section(section: Section, known: Known) -> Iterator[str]:
    yield from ("", f"## {section.title}", "", section.intro)
    for table in section.tables:
        yield from _table(table, known)
    for figure in section.figures:
        yield from _figure(figure, known)
    for block in section.blocks:
        yield from _block(block)


def _table(table: Table, known: Known) -> Iterator[str]:
    yield from ("", f"### {_escaped(table.title)}", "")
    if table.note:
        yield from (table.note, "")
    right = [it.kind in ("number", "main") for it in table.columns]
    yield _row([*(it.title for it in table.columns), "artifact"])
    yield _row(["---:" if it else "---" for it in (*right, False)], escape=False)
    for it in table.rows:
        cells = [_escaped(cell_text(cell)) for cell in it.cells]
        yield _row([*cells, _chips(it.artifacts, known)], escape=False)


def _figure(figure: ShownFigure, known: Known) -> Iterator[str]:
    yield ""
    yield f"![{_escaped(figure.title)}]({FIGURES_FOLDER}/{figure.file})"
    yield ""
    yield f"**{_escaped(figure.title)}.** {_escaped(figure.caption)} " + _chips(
        figure.artifacts, known
    )


def _block(block: Block) -> Iterator[str]:
    yield from ("", f"### {_escaped(block.title)}", "")
    yield from (f"    {line}" for line in block.text.splitlines())


def _artifacts(lineage: Sequence[PageArtifact], known: Known) -> Iterator[str]:
    yield _row(["stage", "artifact", "reads", "content digest"])
    yield _row(["---"] * 4, escape=False)
    for it in lineage:
        reads = ", ".join(
            f"{port}: {known[name].stage if name in known else name}"
            for port, name in it.reads.items()
        )
        yield _row([it.stage, it.artifact, reads or "-", it.digest])


def _chips(names: Sequence[str], known: Known) -> str:
    return " ".join(f"`{name} {known[name].digest[:12]}`" for name in dict.fromkeys(names))


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(map(_escaped, cells) if escape else cells)} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split("\n"))
