"""Charts: heads by depth, layers against layers, images as points.

Axes: L layers, A heads, N images.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.figures import INK, PALETTE, save, short, tidy
from schemas.interpret import Attention, LayerSimilarity, Neighbourhood

_MARKERS = ("o", "s", "^", "D", "P")
_MOST_NAMED = len(PALETTE) * len(_MARKERS)
"""Classes that get a colour and a shape of their own."""
_LEGEND_ROWS = 20
_OTHERS = "#c4c4c4"
_MOST_CELL_TEXTS = 14
_NAME_CHARS = 18


def draw_distances(path: Path, attention: Attention) -> None:
    """A dot for each head and layer; the mean of each layer; what uniform attention would give."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    _dots(axes, attention.distances_px)
    depth = np.arange(1, len(attention.layers) + 1)
    axes.plot(
        depth,
        attention.uniform_distances_px,
        color=INK,
        linestyle="--",
        linewidth=1.1,
        label="uniform attention",
    )
    axes.set_ylabel("mean attention distance (pixels)")
    highest = max(*attention.uniform_distances_px, *(max(row) for row in attention.distances_px))
    axes.set_ylim(0, 1.06 * highest or 1.0)
    _finish_depth(axes, attention.layers)
    axes.legend(frameon=False, fontsize=9, loc="best")
    save(figure, path)


def draw_sharpness(path: Path, attention: Attention) -> None:
    """Entropy by depth, and, where there are leading tokens, the share that goes to them."""
    leading = any(ratio > 0.0 for row in attention.leading_ratios for ratio in row)
    panels = 2 if leading else 1
    figure = Figure(figsize=(4.6 * panels + 0.6, 3.6), layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False)[0]
    drawn = [(attention.entropies, "attention entropy (1: uniform, 0: one token)")]
    if leading:
        drawn.append((attention.leading_ratios, "attention to class token and registers"))
    for axes, (rows, label) in zip(grid, drawn, strict=True):
        _dots(axes, rows)
        axes.set_ylabel(label)
        axes.set_ylim(-0.02, 1.02)
        _finish_depth(axes, attention.layers)
    if leading:
        grid[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    grid[0].legend(frameon=False, fontsize=9, loc="best")
    save(figure, path)


def draw_layers(path: Path, similarity: LayerSimilarity) -> None:
    """A square for each pair of layers; with few layers its value is written in it."""
    count = len(similarity.layers)
    side = min(2.6 + 0.42 * count, 9.0)
    figure = Figure(figsize=(side + 1.4, side), layout="constrained")
    axes = figure.subplots()
    cka_LL = np.array(similarity.cka)
    image = axes.imshow(cka_LL, vmin=0.0, vmax=1.0, cmap="magma", interpolation="nearest")
    names = [short(name, _NAME_CHARS) for name in similarity.layers]
    every = math.ceil(count / 26)
    places = range(0, count, every)
    axes.set_xticks(places, names[::every], rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(places, names[::every], fontsize=8, parse_math=False)
    axes.set_ylabel("layer")
    axes.set_xlabel("layer")
    if count <= _MOST_CELL_TEXTS:
        for (row, column), value in np.ndenumerate(cka_LL):
            colour = INK if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("linear CKA (1: alike up to turning and scaling)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)


def draw_neighbourhood(
    path: Path,
    found: Neighbourhood,
    points_N2: Float[np.ndarray, "N 2"],
    class_names: Sequence[str],
) -> None:
    """Every image as a point in the colour and shape of its class; beyond 40 classes, in grey."""
    label_N = np.array(found.labels)
    ranked = _by_count(label_N)
    named, others = ranked[:_MOST_NAMED], ranked[_MOST_NAMED:]
    columns = math.ceil((len(named) + bool(others)) / _LEGEND_ROWS)
    figure = Figure(figsize=(6.4 + 1.9 * columns, 6.0), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(9000.0 / found.images, 7.0, 40.0))
    rest_N = np.isin(label_N, others)
    x, y = points_N2[rest_N].T
    axes.scatter(x, y, s=size, color=_OTHERS, linewidths=0)
    handles = []
    for place, label in enumerate(sorted(named)):
        colour, marker = _style(place)
        x, y = points_N2[label_N == label].T
        axes.scatter(x, y, s=size, alpha=0.85, linewidths=0, color=colour, marker=marker)
        handles.append(_key(short(class_names[label], _NAME_CHARS), colour, marker))
    if others:
        handles.append(_key(f"{len(others)} other classes", _OTHERS, "o"))
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        labelspacing=0.55,
    )
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#bbbbbb")
    save(figure, path)


def _dots(axes: Axes, rows_LA: Sequence[Sequence[float]]) -> None:
    depth = np.arange(1, len(rows_LA) + 1)
    for place, row in zip(depth, rows_LA, strict=True):
        first = "one head" if place == 1 else None
        axes.scatter(
            np.full(len(row), place), row, s=20, color=PALETTE[0], alpha=0.55, linewidths=0,
            label=first,
        )  # fmt: skip
    means = [float(np.mean(row)) for row in rows_LA]
    axes.plot(depth, means, color=PALETTE[1], linewidth=1.5, label="mean of the layer")


def _finish_depth(axes: Axes, layers: Sequence[str]) -> None:
    """The depth on the x axis; axial blocks have two places each."""
    axes.set_xlabel("network depth (layer)")
    axes.set_xlim(0.5, len(layers) + 0.5)
    if all(name == f"block {number}" for number, name in enumerate(layers, start=1)):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    else:
        short_names = [name.removeprefix("block ") for name in layers]
        axes.set_xticks(range(1, len(layers) + 1), short_names, rotation=90, fontsize=8)
    tidy(axes, grid="y")


def _by_count(label_N: Integer[np.ndarray, " N"]) -> list[int]:
    """Classes, the most frequent first."""
    labels, counts = np.unique(label_N, return_counts=True)
    return [int(it) for it in labels[np.argsort(-counts, kind="stable")]]


def _style(place: int) -> tuple[str, str]:
    """Colour and shape of a class."""
    turn, colour = divmod(place, len(PALETTE))
    return PALETTE[colour], _MARKERS[turn]


def _key(label: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=6, color=colour, label=label)
