"""Curves of all models under a test, and strips of what the changed images look like."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.figures import INK, PALETTE, save, short, tidy, write_notes
from schemas.report import FIGURES_FOLDER, FigureNote
from schemas.robustness_report import MeasuredModel, RobustnessCurve, RobustnessReport

NAMES = {
    "patch_drop": "Patches dropped",
    "patch_shuffle": "Patches shuffled",
    "lesion": "Lesions of blocks",
    "token_correlation": "Correlation of features",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "image_patch": "Adversarial patch for each image",
    "universal_patch": "Universal adversarial patch",
    "corruption": "Common corruptions",
}
_MOST_COLUMNS = 4
_MOST_TICKS = 5
_MARKERS = "osD^vPX*"
_WHOLE = (0, (4, 3))
"""Dashes of the lines for whole images."""
_STRIP_IMAGE_INCHES = 1.0


@dataclass(frozen=True)
class StripRow:
    """One image under one change of rising strength."""

    title: str
    labels: tuple[str, ...]
    images: tuple[UInt8[np.ndarray, "H W C"], ...]


def draw_test(
    path: Path, curves: Sequence[RobustnessCurve], models: Sequence[MeasuredModel]
) -> None:
    """One panel for each variant of a test, one line for each model with its 95 % interval.

    Accuracy on whole images is a dashed line in the model's colour.
    """
    variants = _panels(curves)
    columns = min(len(variants), _MOST_COLUMNS)
    rows = math.ceil(len(variants) / columns)
    width = 3.1 if columns > 1 else 5.2
    size = (max(5.2, width * columns), 2.7 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in grid[len(variants) :]:
        axes.set_axis_off()
    for axes, (variant, measure) in zip(grid, variants, strict=False):
        own = [it for it in curves if (it.variant, it.measure) == (variant, measure)]
        _draw_panel(axes, own, models)
        more = ": how many" if measure == "dropped_ratio" else ""
        title = short(variant.replace("_", " "), 40) + more
        axes.set_title(title, fontsize=9, parse_math=False)
    lines: dict[str, Artist] = {}
    for axes in grid:
        lines |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if any(measure == "top1_ratio" for _, measure in variants):
        lines["images as they are"] = Line2D([], [], color=INK, linestyle=_WHOLE, linewidth=0.9)
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=min(4, len(lines)),
        frameon=False,
        fontsize=8,
    )
    save(figure, path)


def _panels(curves: Sequence[RobustnessCurve]) -> list[tuple[str, str]]:
    """Variant and measure of each panel, by their first place among the curves of any model."""
    places: dict[tuple[str, str], int] = {}
    for model in dict.fromkeys(curve.model for curve in curves):
        own = [(it.variant, it.measure) for it in curves if it.model == model]
        for place, panel in enumerate(own):
            places[panel] = min(place, places.get(panel, place))
    return sorted(places, key=lambda panel: places[panel])


def _draw_panel(
    axes: Axes, curves: Sequence[RobustnessCurve], models: Sequence[MeasuredModel]
) -> None:
    stages = [model.stage for model in models]
    for curve in curves:
        number = stages.index(curve.model)
        colour = PALETTE[number % len(PALETTE)]
        x, means = [it.x for it in curve.points], [it.mean for it in curve.points]
        low, high = [it.low for it in curve.points], [it.high for it in curve.points]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = _MARKERS[number % len(_MARKERS)]
        name = "" if curve.measure == "dropped_ratio" else short(curve.model, 28)
        axes.plot(x, means, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=name)
        if curve.measure == "top1_ratio":
            clean = models[number].clean.top1_ratio
            axes.axhline(clean, color=colour, linestyle=_WHOLE, linewidth=0.9)
    _name_axes(axes, curves)


_MEASURES = {
    "top1_ratio": "top-1 accuracy",
    "correlation": "correlation",
    "dropped_ratio": "share of patches dropped",
}


def _name_axes(axes: Axes, curves: Sequence[RobustnessCurve]) -> None:
    first = curves[0]
    axes.set_xlabel(first.axis, fontsize=8)
    axes.set_ylabel(_MEASURES[first.measure], fontsize=8)
    axes.tick_params(labelsize=8)
    if first.measure == "correlation":
        axes.set_ylim(min(0.0, *(it.low for curve in curves for it in curve.points)) - 0.02, 1.02)
    else:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if first.test == "patch_shuffle":
        points = {it.x: it.label for curve in curves for it in curve.points}
        axes.set_xscale("log", base=2)
        axes.set_xticks([*points], [*points.values()], rotation=60)
        axes.minorticks_off()
        axes.set_xlabel("rows x columns of cells that change places", fontsize=8)
    elif first.test == "lesion":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif len(first.points) <= _MOST_TICKS:
        axes.set_xticks([it.x for it in first.points])
    tidy(axes, grid="both")


def draw_strip(path: Path, rows: Sequence[StripRow]) -> None:
    """A row for each change, its strength rising to the right; the first image is whole."""
    columns = max(len(row.images) for row in rows)
    inch = _STRIP_IMAGE_INCHES
    figure = Figure(figsize=(inch * columns + 1.5, (inch + 0.22) * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in np.ravel(panels):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
    for line, row in zip(panels, rows, strict=True):
        line[0].set_ylabel(
            short(row.title.replace("_", " "), 26),
            rotation=0,
            ha="right",
            va="center",
            fontsize=8,
            color=INK,
            parse_math=False,
        )
        for axes, label, image in zip(line, row.labels, row.images, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(short(label, 16), fontsize=7, pad=2)
    save(figure, path)


def draw_report(
    folder: Path, report: RobustnessReport, strips: Mapping[str, Sequence[StripRow]]
) -> None:
    """Figures of curves and of changed images for each test, with notes, below an artifact."""
    notes = []
    target = folder / FIGURES_FOLDER
    for test in report.tests:
        curves = [curve for curve in report.curves if curve.test == test.type]
        if not curves:
            continue
        name = NAMES[test.type]
        draw_test(target / f"{test.type}.png", curves, report.models)
        notes.append(FigureNote(file=f"{test.type}.png", title=name, caption=_caption(report)))
        rows = strips.get(test.type)
        if rows:
            draw_strip(target / f"{test.type}_images.png", rows)
            caption = "One image of the split as the models see it, and as the test changes it."
            file = f"{test.type}_images.png"
            notes.append(FigureNote(file=file, title=f"{name}: images", caption=caption))
    write_notes(folder, *notes)


def _caption(report: RobustnessReport) -> str:
    guide = "" if report.guide is None else f" Salient patches are said by {report.guide}."
    return (
        f"{report.images} images of {report.data}@{report.split}. Bands are 95 % intervals over "
        f"images; dashed lines are the accuracy on whole images.{guide}"
    )
