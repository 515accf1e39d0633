"""Figures of one evaluation: reliability, and accuracy by the size of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.figures import INK, PALETTE, save, tidy
from schemas.evaluation import Calibration, SizeFigures, size_name


def draw_reliability(path: Path, found: Calibration) -> None:
    """Share of right answers by probability, above how many answers have it (log scale)."""
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [it for it in found.bins if it.images]
    left = [it.low for it in filled]
    widths = [it.high - it.low for it in filled]
    ratios = [it.right_ratio or 0.0 for it in filled]
    above.bar(left, ratios, widths, align="edge", color=PALETTE[0], alpha=0.85, edgecolor="white")
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated")
    means = [it.confidence or 0.0 for it in filled]
    above.plot(means, ratios, ".", color=PALETTE[1], markersize=8, label="mean of the bin")
    above.legend(frameon=False, loc="upper left", fontsize=9)
    above.set_ylabel("answers that are right")
    above.set_title(f"expected calibration error {found.ece_ratio:.1%}", fontsize=10)
    above.set_ylim(0, 1.02)
    below.bar(left, [it.images for it in filled], widths, align="edge", color=PALETTE[5])
    below.set_yscale("log")
    below.set_ylim(bottom=0.5)
    below.set_ylabel("images")
    below.set_xlabel("probability of the answer")
    below.set_xlim(0, 1)
    for axis in (above.yaxis, below.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (above, below):
        tidy(axes, grid="y")
    save(figure, path)


def draw_sizes(path: Path, sizes: Sequence[SizeFigures], own_px: tuple[int, int]) -> None:
    """Top-1 with Wilson intervals by the size of images; the model's own size is marked."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(sizes))
    ratios = np.array([it.top1.ratio for it in sizes])
    lows = ratios - [it.top1.low_ratio for it in sizes]
    highs = np.array([it.top1.high_ratio for it in sizes]) - ratios
    whiskers = np.maximum(0.0, [lows, highs])
    axes.errorbar(places, ratios, yerr=whiskers, fmt="o-", color=PALETTE[0], capsize=4)
    own = [place for place in places if sizes[place].image_px == own_px]
    axes.plot(
        own, ratios[own], "D", color=PALETTE[1], markersize=9, label="size of training", zorder=3
    )
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    for place in places:
        axes.annotate(
            f"{ratios[place]:.1%}",
            (place, ratios[place]),
            (8, 8),
            textcoords="offset points",
            fontsize=9,
            bbox=behind,
        )
    axes.set_xticks(places, [size_name(it.image_px).removesuffix("px") for it in sizes])
    axes.margins(x=0.15, y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("side of the images, pixels")
    axes.set_ylabel("top-1 accuracy, 95 % interval")
    axes.legend(frameon=False, loc="best", fontsize=9)
    tidy(axes, grid="y")
    save(figure, path)
