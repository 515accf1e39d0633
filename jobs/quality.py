"""The quality report of a shard set, as a stage leaves it: `quality.json` and figures."""

from pathlib import Path

from pipeline.data.images.decode import decode
from pipeline.data.images.sheet import tile
from pipeline.data.shards.quality import measure
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from pipeline.evaluation.corpus_figures import draw_corpus
from schemas.artifacts import LOGS_FOLDER
from schemas.quality import QUALITY_FILE, QualityReport
from schemas.report import FIGURES_FOLDER
from schemas.spec import canonical_json

_SHEET_COLUMNS = 8
_SHEET_IMAGES = 64


def write_quality(folder: Path, data: ShardSet, tools: BuildTools) -> QualityReport:
    """Measure a local shard set; write its numbers, figures and contact sheet into `folder`.

    What Matplotlib draws lies among the logs: its version must neither be part of a corpus's key
    nor change the digest that all that follows is keyed by.
    """
    report = measure(data, tools)
    write_bytes(folder / QUALITY_FILE, (canonical_json(report.dump()) + "\n").encode())
    draw_corpus(folder / LOGS_FOLDER / FIGURES_FOLDER, report)
    write_sheet(folder / FIGURES_FOLDER, data)
    return report


def write_sheet(folder: Path, data: ShardSet) -> Path:
    """The contact sheet; returns its file."""
    path = folder / "contact_sheet.png"
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
