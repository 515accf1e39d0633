"""What a page says beside the pictures of a model: which of them its kind does not give."""

from pipeline.evaluation.report.cells import row, text, words
from pipeline.evaluation.report.sources import Document
from pipeline.evaluation.report.words import in_words
from schemas.interpret import INTERPRET_FILE, InterpretReport
from schemas.report_page import Table
from schemas.runs import InputArtifact

INSIGHTS = (
    "Pictures of what a model has learned: its first filters, its positions, where and how far its "
    "heads look, and which images and layers it holds alike."
)


def absent_table(source: InputArtifact) -> tuple[Table, ...]:
    """Sections that the model does not give, with the reason."""
    absent = Document.read(source, INTERPRET_FILE, InterpretReport).at("absent")
    rows = tuple(
        row([text(in_words(it["section"])), text(it["reason"])], source.artifact) for it in absent
    )
    head = words("picture", "why there is none")
    return (Table(title=f"{source.stage}: not drawn", columns=head, rows=rows),) if rows else ()
