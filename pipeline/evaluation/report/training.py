"""Section `training`: where each training ended, its curves, and what a search chose."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation import figures, study
from pipeline.evaluation.report.cells import amounts, main, names, numbers, row, text, words
from pipeline.evaluation.report.sources import Document, of_kinds
from schemas.artifacts import LOGS_FOLDER
from schemas.report import FIGURES_FOLDER, SEARCH_FILE, SearchReport
from schemas.report_page import Cell, Number, Row, Section, ShownFigure, Table, Trace, Unit
from schemas.runs import InputArtifact, MetricPoint

KINDS = ("pretrain", "finetune")
POINTS_FILE = f"{LOGS_FOLDER}/metrics.jsonl"
LOSS, VALIDATION = "train/loss", "validation/"

Points = Mapping[str, Sequence[tuple[int, float]]]
"""Metric key -> (step, value), steps rising."""


@dataclass(frozen=True)
class Curve:
    """A figure of one logged metric."""

    key: str
    title: str
    ylabel: str
    caption: str
    smooth: bool = False

    @property
    def file(self) -> str:
        """Name of the picture."""
        return f"{self.key.replace('/', '_').removeprefix('train_')}.png"


CURVES = (
    Curve(
        LOSS,
        "Training loss",
        "training loss, nats",
        "A moving mean over a fortieth of the points, before the points themselves.",
        smooth=True,
    ),
    Curve("validation/loss", "Validation loss", "validation loss, nats", "Every image once."),
    Curve(
        "validation/top1_ratio",
        "Validation accuracy",
        "validation top-1, ratio",
        "Share of validation images whose class was named correctly.",
    ),
    Curve("train/learning_rate", "Learning rate", "learning rate", "Of each optimizer step."),
)
PACE = Curve(
    "train/images_per_second",
    "Images a second",
    "images/s",
    "Of all workers, since the point before; checkpoints and validations are left out.",
)


def read_points(source: InputArtifact) -> Points:
    """The logged points of a training artifact; empty where no log stands beside it.

    A step that was logged twice (before and after a resume) counts once, the later one.
    """
    path = Path(source.path) / POINTS_FILE
    if not path.exists():
        return {}
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        point = MetricPoint.model_validate_json(line)
        found.setdefault(point.key, {})[point.step] = point.value
    return {key: sorted(points.items()) for key, points in found.items()}


def training_section(
    folder: Path,
    sources: Sequence[InputArtifact],
    points: Mapping[str, Points],
    drawn: Sequence[ShownFigure],
) -> Section:
    """Tables and curves; the latter are drawn into `folder`. `points` goes by stage."""
    trained = of_kinds(sources, *KINDS)
    return Section(
        name="training",
        title="Training",
        intro="The last logged point of each training, and its way there.",
        tables=(*_ends_table(trained, points), *_searches_table(trained)),
        figures=(
            *(it for curve in CURVES for it in draw_curve(folder, trained, points, curve)),
            *drawn,
        ),
    )


def draw_curve(
    folder: Path, trained: Sequence[InputArtifact], points: Mapping[str, Points], curve: Curve
) -> tuple[ShownFigure, ...]:
    """One panel for each stage that logged the metric, one line for each of its variants."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    logged = [it for it in trained if curve.key in points[it.stage]]
    for source in logged:
        panel = panels.setdefault(study.split_name(source.stage).stage, {})
        panel[source.stage] = points[source.stage][curve.key]
    if not panels:
        return ()
    path = folder / FIGURES_FOLDER / curve.file
    figures.draw_curves(path, panels, ylabel=curve.ylabel, smooth=curve.smooth)
    return (
        ShownFigure(
            file=curve.file,
            title=curve.title,
            caption=curve.caption,
            artifacts=tuple(dict.fromkeys(it.artifact for it in logged)),
        ),
    )


def logged_number(source: InputArtifact, points: Points, key: str, unit: Unit) -> Number | None:
    """The last logged value of a metric; None where there is none, or it is not finite."""
    step, value = points.get(key, [(0, math.nan)])[-1]
    if not math.isfinite(value):
        return None
    trace = Trace(artifact=source.artifact, file=POINTS_FILE, where=f"{key}@{step}")
    return Number(value=value, unit=unit, traces=(trace,))


def _ends_table(
    trained: Sequence[InputArtifact], points: Mapping[str, Points]
) -> tuple[Table, ...]:
    if not trained:
        return ()
    validated = sorted(
        {key for it in trained for key in points[it.stage] if key.startswith(VALIDATION)}
    )
    head = (
        *names("stage"),
        *words("kind"),
        *amounts("last logged step"),
        *main("loss there, nats"),
        *amounts(*(key.replace("/", " ").replace("_ratio", "") for key in validated)),
    )
    rows = tuple(_end_row(it, points[it.stage], validated) for it in trained)
    return (Table(title="Where it ended", columns=head, rows=rows),)


def _end_row(source: InputArtifact, points: Points, validated: Sequence[str]) -> Row:
    return row(
        [
            text(source.stage),
            text(source.kind),
            _last_step(source, points),
            _cell(logged_number(source, points, LOSS, "loss")),
            *(_cell(logged_number(source, points, key, _unit(key))) for key in validated),
        ],
        source.artifact,
    )


def _last_step(source: InputArtifact, points: Points) -> Cell:
    if LOSS not in points:
        return text("no log")
    step = points[LOSS][-1][0]
    trace = Trace(artifact=source.artifact, file=POINTS_FILE, where=f"{LOSS}@{step}")
    return numbers(Number(value=step, unit="count", traces=(trace,), how="step"))


def _unit(key: str) -> Unit:
    return "ratio" if key.endswith("_ratio") else "loss"


def _cell(number: Number | None) -> Cell:
    return text("-") if number is None else numbers(number)


def _searches_table(trained: Sequence[InputArtifact]) -> tuple[Table, ...]:
    """What fine-tunings tried on held-out training labels."""
    searched = [it for it in trained if (Path(it.path) / SEARCH_FILE).exists()]
    if not searched:
        return ()
    head = (
        *names("stage"),
        *amounts("peak learning rate", "steps"),
        *main("held-out top-1"),
        *words(""),
    )
    return (
        Table(
            title="Search on held-out training labels",
            columns=head,
            rows=tuple(found for it in searched for found in _search_rows(it)),
        ),
    )


def _search_rows(source: InputArtifact) -> list[Row]:
    report = Document.read(source, SEARCH_FILE, SearchReport)
    chosen = report.at("chosen")
    return [
        row(
            [
                text(source.stage),
                numbers(report.number("trials", place, "peak_lr", unit="plain")),
                numbers(report.number("trials", place, "steps", unit="count")),
                numbers(report.number("trials", place, "holdout_top1_ratio", unit="ratio")),
                text("chosen" if place == chosen else ""),
            ],
            marked=place == chosen,
        )
        for place in range(len(report.at("trials")))
    ]
