"""Figures as PNG files: no screen, no global state, equal input gives equal bytes.

Axes: K classes, M images, H W pixels, C channels.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from schemas.report import FIGURE_NOTES_FILE, FIGURES_FOLDER, FigureNote, FigureNotes
from schemas.spec import canonical_json

_DPI = 144
_MAX_CELL_TEXTS = 20
_MAX_CLASS_NAMES = 60
_MAX_NAME_CHARS = 18
_RIGHT, _WRONG, INK, _GRID = "#1b7f4b", "#c2312b", "#222222", "#dddddd"
PALETTE = (
    "#3457a6", "#d1662c", "#1b8a6b", "#9a4fb0", "#b98a00", "#5c7a8a", "#c2417c", "#4c7d1f",
)  # fmt: skip
"""Told apart in print, on both page colours and with the common kinds of colour blindness."""


Curve = Sequence[tuple[int, float]]
"""(Step, value), steps rising; at least one point."""


class Bar(NamedTuple):
    """One measured ratio with the ends of its interval."""

    label: str
    ratio: float
    low: float
    high: float
    group: str
    """Bars of one group share a colour."""


def write_notes(folder: Path, *figures: FigureNote) -> None:
    """Say beside the figures of an artifact what each shows; pages list them in this order."""
    path = folder / FIGURES_FOLDER / FIGURE_NOTES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(canonical_json(FigureNotes(figures=figures).dump()) + "\n")


def draw_confusion(
    path: Path, confusion_KK: Integer[np.ndarray, "K K"], class_names: Sequence[str]
) -> None:
    """Rows of true classes, columns of answers, each row's share as colour, counts as text."""
    count = len(class_names)
    side = min(3.2 + 0.32 * count, 14.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    totals = np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    shares_KK = confusion_KK / totals
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    _name_classes(axes, class_names)
    axes.set_xlabel("answer of the method")
    axes.set_ylabel("true class")
    if count <= _MAX_CELL_TEXTS:
        _write_counts(axes, confusion_KK, shares_KK)
    save(figure, path)


def draw_predictions(
    path: Path,
    shown_MHWC: UInt8[np.ndarray, "M H W C"],
    *,
    label_M: Integer[np.ndarray, " M"],
    predicted_M: Integer[np.ndarray, " M"],
    class_names: Sequence[str],
) -> None:
    """A grid of images, each with its answer; a mistake says the true class and is framed."""
    columns = min(4, len(shown_MHWC))
    rows = math.ceil(len(shown_MHWC) / columns)
    figure = Figure(figsize=(2.0 * columns, 2.35 * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in panels:
        axes.set_axis_off()
    # The sample may be shorter than the grid.
    for axes, pixels, label, predicted in zip(
        panels, shown_MHWC, label_M, predicted_M, strict=False
    ):
        _show_answer(axes, pixels, class_names[label], class_names[predicted])
    save(figure, path)


def draw_accuracies(path: Path, bars: Sequence[Bar]) -> None:
    """Horizontal bars with intervals, in the order given, on an axis from 0 to 100 %."""
    figure = Figure(figsize=(8.0, 0.9 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(bar.group for bar in bars))
    for place, bar in enumerate(bars):
        colour = PALETTE[groups.index(bar.group) % len(PALETTE)]
        axes.barh(place, bar.ratio, height=0.66, color=colour, alpha=0.85)
        whiskers = [[max(0.0, bar.ratio - bar.low)], [max(0.0, bar.high - bar.ratio)]]
        axes.errorbar(bar.ratio, place, xerr=whiskers, color=INK, capsize=3, linewidth=1.1)
        axes.text(1.02, place, f"{bar.ratio:.1%}", va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(bars)), [short(bar.label, 40) for bar in bars], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("top-1 accuracy with 95 % interval")
    tidy(axes, grid="x")
    save(figure, path)


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, Curve]], *, ylabel: str, smooth: bool
) -> None:
    """One panel for each stage, one line for each of its variants.

    With `smooth`, the line is a moving mean over 1/40 of the points, drawn over the points.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for index, (axes, (stage, curves)) in enumerate(zip(grid, panels.items(), strict=False)):
        axes.set_title(short(stage, 40), fontsize=10, parse_math=False)
        for curve in curves.values():
            _draw_curve(axes, curve, PALETTE[index % len(PALETTE)], smooth=smooth)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_ylim(bottom=0)
        tidy(axes, grid="both")
    save(figure, path)


def _draw_curve(axes: Axes, curve: Curve, colour: str, *, smooth: bool) -> None:
    steps, values = zip(*curve, strict=True)
    width = max(1, len(values) // 40) if smooth else 1
    if width > 1:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, _moving_mean(values, width), color=colour, linewidth=1.6)


def _moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last `width` values (fewer at the start)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def _show_answer(axes: Axes, pixels_HWC: np.ndarray, true: str, answer: str) -> None:
    right = true == answer
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(pixels_HWC, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_color(_RIGHT if right else _WRONG)
        spine.set_linewidth(1.0 if right else 3.5)
    name = short(answer, _MAX_NAME_CHARS)
    text = name if right else f"{name}\ntrue: {short(true, _MAX_NAME_CHARS)}"
    mark = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
    axes.set_title(
        f"{mark} {text}", fontsize=9, color=_RIGHT if right else _WRONG, parse_math=False
    )


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    if len(class_names) > _MAX_CLASS_NAMES:
        return
    names = [short(name, _MAX_NAME_CHARS) for name in class_names]
    size = 9 if len(names) <= _MAX_CELL_TEXTS else 6
    longest = max(len(name) for name in names)
    axes.set_xticks(
        range(len(names)), names, rotation=90 if longest > 3 else 0, fontsize=size, parse_math=False
    )
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)


def _write_counts(axes: Axes, confusion_KK: np.ndarray, shares_KK: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(confusion_KK):
        if count:
            colour = "white" if shares_KK[row, column] > 0.5 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def tidy(axes: Axes, *, grid: str) -> None:
    """No box; a quiet grid (`x`, `y` or `both`) behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_GRID, linewidth=0.7)  # type: ignore[arg-type]  # a literal type


def short(text: str, limit: int) -> str:
    """Text of at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG: equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Class names may be in any script; a box for a letter is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # The default metadata names the Matplotlib version, nothing else.
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
