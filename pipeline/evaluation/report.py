"""One page about other stages: `report.html` for people, `report.json` for programs, figures.

The page is one file without links to anything outside, so that it can be mailed. Nothing in it
depends on the clock or on where the workspace lies.
"""

import base64
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation import figures, study, tables
from schemas.artifacts import LOGS_FOLDER
from schemas.report import FIGURES_FOLDER, AccuracyRow, ReportDocument
from schemas.runs import InputArtifact
from schemas.spec import canonical_json
from schemas.stage import SHARD_SETS

REPORT_PAGE = "report.html"
REPORT_DOCUMENT = "report.json"
_TEMPLATE = "report.html.j2"
_MOST_BARS = 40

_CURVES = {
    "train/loss": ("loss.png", "Training loss", "training loss, nats"),
    "train/learning_rate": ("learning_rate.png", "Learning rate", "learning rate"),
}
_COPIED = {
    "quality.png": ("data", "What the images of {} are like"),
    "classes.png": ("data", "Images of each class of {}"),
    "rejections.png": ("data", "Files that {} refused"),
    "contact_sheet.png": ("data", "Contact sheet of {}"),
    "pairs.png": ("data", "Images that {} took out, each beside what it copies, least alike first"),
    "predictions.png": ("answers", "First images of the split and what {} answers"),
    "confusion.png": ("answers", "Confusion of {}"),
}
"""Figure of another stage -> the section of the page where it is shown, and its title."""


@dataclass(frozen=True)
class Shown:
    """A figure on the page."""

    section: str
    title: str
    file: Path

    @property
    def data_uri(self) -> str:
        """The PNG file itself, as an address."""
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode()


def write_report(folder: Path, *, title: str, sources: Sequence[InputArtifact]) -> ReportDocument:
    """Write page, document and figures into `folder`; tables are in the order of `sources`.

    Raises:
        IntegrityError: If an artifact lacks a document that its kind must have.
    """
    points = {it.stage: tables.read_points(it) for it in _of(sources, "pretrain", "finetune")}
    document = _build(title, sources=sources, points=points)
    shown = (
        *_draw_accuracies(folder, document.accuracies),
        *_draw_curves(folder, points),
        *_copy_figures(folder, sources),
    )
    (folder / REPORT_DOCUMENT).write_text(canonical_json(document.dump()) + "\n")
    (folder / REPORT_PAGE).write_text(render(document, shown), encoding="utf-8")
    return document


def render(document: ReportDocument, shown: Sequence[Shown]) -> str:
    """The page as HTML; every name that a user chose is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(percent=_percent, points=_points, verdict=_verdict)
    page: str = environment.get_template(_TEMPLATE).render(document=document, shown=shown)
    return page


def _build(
    title: str,
    *,
    sources: Sequence[InputArtifact],
    points: dict[str, tables.Points],
) -> ReportDocument:
    measured = _of(sources, "evaluate", "baseline")
    rows = tuple(row for source in measured for row in tables.accuracy_rows(source))
    trained = _of(sources, "pretrain", "finetune")
    cleaned = _of(sources, "filter")
    return ReportDocument(
        title=title,
        notes=tables.baseline_notes(rows),
        accuracies=rows,
        means=study.means(rows),
        differences=study.differences(rows),
        data=tuple(tables.data_row(it) for it in _of(sources, *SHARD_SETS)),
        rejections=tuple(
            row for it in _of(sources, "ingest", "append") for row in tables.rejection_rows(it)
        ),
        test_copies=tuple(row for it in cleaned for row in tables.test_copies_rows(it)),
        matches=tuple(row for it in cleaned for row in tables.match_rows(it)),
        training=tuple(tables.training_row(it, points[it.stage]) for it in trained),
        searches=tuple(row for it in trained for row in tables.search_rows(it)),
        inputs={source.stage: source.digest for source in sources},
    )


def _of(sources: Sequence[InputArtifact], *kinds: str) -> list[InputArtifact]:
    return [source for source in sources if source.kind in kinds]


def _draw_accuracies(folder: Path, rows: Sequence[AccuracyRow]) -> tuple[Shown, ...]:
    """One bar for each row; with very many variants the tables say more than a chart."""
    if not 0 < len(rows) <= _MOST_BARS:
        return ()
    bars = [
        figures.Bar(
            label=study.label(row.stage, row.method.replace("_", " ")),
            ratio=row.top1_ratio,
            low=row.low_ratio,
            high=row.high_ratio,
            group=study.label(study.split_name(row.stage).stage, row.method),
        )
        for row in rows
    ]
    path = folder / FIGURES_FOLDER / "accuracy.png"
    figures.draw_accuracies(path, bars)
    return (Shown("accuracy", "Accuracy with 95 % intervals", path),)


def _draw_curves(folder: Path, points: dict[str, tables.Points]) -> tuple[Shown, ...]:
    drawn = []
    for key, (name, title, ylabel) in _CURVES.items():
        panels: dict[str, dict[str, figures.Curve]] = {}
        for stage, logged in points.items():
            if key in logged:
                panels.setdefault(study.split_name(stage).stage, {})[stage] = logged[key]
        if panels:
            path = folder / FIGURES_FOLDER / name
            figures.draw_curves(path, panels, ylabel=ylabel, smooth=key == "train/loss")
            drawn.append(Shown("training", title, path))
    return tuple(drawn)


def _copy_figures(folder: Path, sources: Sequence[InputArtifact]) -> tuple[Shown, ...]:
    """Figures that other stages drew, under names that say whose they are."""
    copied = []
    (folder / FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
    for source in sources:
        for name, (section, title) in _COPIED.items():
            places = (Path(source.path), Path(source.path) / LOGS_FOLDER)
            found = [it / FIGURES_FOLDER / name for it in places]
            for original in filter(Path.exists, found):
                path = folder / FIGURES_FOLDER / f"{_file_name(source.stage)}-{name}"
                shutil.copyfile(original, path)
                copied.append(Shown(section, title.format(source.stage), path))
    return tuple(copied)


def _file_name(stage: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", stage).strip("_")


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f}\N{NO-BREAK SPACE}%"


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.1f}"


def _verdict(low_and_high: tuple[float, float]) -> str:
    low, high = low_and_high
    if low > 0:
        return "first is ahead"
    return "second is ahead" if high < 0 else "not told apart"
