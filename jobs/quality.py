"""The quality report of a shard set, as a stage leaves it: `quality.json` and figures."""

from pathlib import Path

from pipeline.data.images.decode import decode
from pipeline.data.images.sheet import tile
from pipeline.data.shards.quality import measure
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from pipeline.evaluation.corpus_figures import CORPUS_NOTES, draw_corpus
from pipeline.evaluation.figures import write_notes
from schemas.artifacts import LOGS_FOLDER
from schemas.quality import QUALITY_FILE, QualityReport
from schemas.report import FIGURES_FOLDER, FigureNote
from schemas.spec import canonical_json

_SHEET_COLUMNS = 8
_SHEET_IMAGES = 64
_SHEET_FILE = "contact_sheet.png"
_SHEET_NOTE = FigureNote(
    file=_SHEET_FILE,
    title="contact sheet",
    caption="The first stored images, which are a random draw, with their classes.",
)


def write_quality(folder: Path, data: ShardSet, tools: BuildTools) -> QualityReport:
    """Measure a local shard set; write its numbers, figures and contact sheet into `folder`.

    What Matplotlib draws lies among the logs, and so do the words about it: its version must
    neither be part of a corpus's key nor change the digest that all that follows is keyed by.
    """
    report = measure(data, tools)
    write_bytes(folder / QUALITY_FILE, (canonical_json(report.dump()) + "\n").encode())
    drawn = {it.name for it in draw_corpus(folder / LOGS_FOLDER / FIGURES_FOLDER, report)}
    write_sheet(folder / FIGURES_FOLDER, data)
    noted = (note for note in CORPUS_NOTES if note.file in drawn)
    write_notes(folder / LOGS_FOLDER, _SHEET_NOTE, *noted)
    return report


def write_sheet(folder: Path, data: ShardSet) -> Path:
    """The contact sheet; returns its file."""
    path = folder / _SHEET_FILE
    write_bytes(path, _contact_sheet(data))
    return path


def _contact_sheet(data: ShardSet) -> bytes:
    """The first images of the first split that is not for testing; storage order is random."""
    name = "train" if "train" in data.manifest.splits else min(data.manifest.splits)
    split = data.split(name)
    rows = [split.row(index) for index in range(min(_SHEET_IMAGES, split.num_rows))]
    return tile(
        [(decode(row.image), data.class_names[row.label]) for row in rows],
        columns=_SHEET_COLUMNS,
    )
