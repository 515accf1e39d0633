"""Figures of a corpus: what its images are like, how many each class has, what was refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.evaluation.figures import INK, PALETTE, save, short, tidy
from schemas.quality import Histogram, QualityReport, SplitQuality
from schemas.report import FigureNote

CORPUS_NOTES = (
    FigureNote(
        file="quality.png",
        title="what the images are like",
        caption="Longer side and shape of the source images, brightness and size of what is "
        "stored; one outline for each split, as shares of the split.",
    ),
    FigureNote(
        file="classes.png",
        title="images of each class",
        caption="Of all splits; many classes are a curve from the largest to the smallest.",
    ),
    FigureNote(
        file="rejections.png",
        title="files that were refused",
        caption="By reason; a duplicate has the bytes of an image that is kept.",
    ),
)
"""What `draw_corpus` draws."""
_MOST_CLASSES = 40
"""Classes that get a bar each; more are drawn as a curve from the largest to the smallest."""


def draw_corpus(folder: Path, report: QualityReport) -> list[Path]:
    """Write `quality.png`, `classes.png` and, where files were refused, `rejections.png`."""
    quality, classes, rejections = (
        folder / f"{name}.png" for name in ("quality", "classes", "rejections")
    )
    _draw_quality(quality, report.splits)
    _draw_classes(classes, report)
    if not report.rejected:
        return [quality, classes]
    _draw_rejections(rejections, report)
    return [quality, classes, rejections]


def _draw_quality(path: Path, splits: Sequence[SplitQuality]) -> None:
    figure = Figure(figsize=(8.8, 5.8), layout="constrained")
    panels: tuple[tuple[str, str, Callable[[float], str] | None], ...] = (
        ("source_side_px", "longer side of the source image, px", _pixels),
        ("aspect_ratio", "width : height of the source image", _ratio),
        ("brightness", "mean grey level (0 black, 255 white)", None),
        ("stored_bytes", "size of the stored image", _bytes),
    )
    for axes, (name, title, unit) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        _draw_histograms(axes, {it.split: getattr(it, name) for it in splits}, unit)
        axes.set_xlabel(title)
        axes.set_ylabel("share of the split")
    figure.axes[0].legend(frameon=False, fontsize=9)
    unknown = sum(it.brightness_unknown for it in splits)
    if unknown:
        figure.axes[2].set_title(f"{unknown:,} images not measured", fontsize=9, color=INK)
    save(figure, path)


def _draw_histograms(
    axes: Axes, histograms: dict[str, Histogram], unit: Callable[[float], str] | None
) -> None:
    """One outline for each split, over equally wide bins, cut to those that are filled."""
    filled = np.flatnonzero(np.sum([it.counts for it in histograms.values()], axis=0))
    first, last = (filled[0], filled[-1] + 1) if len(filled) else (0, 1)
    for colour, (split, histogram) in zip(_colours(), histograms.items(), strict=False):
        counts = np.asarray(histogram.counts)[first:last]
        edges = np.asarray(histogram.edges)[first : last + 1]
        places = np.log2(edges) if unit in (_pixels, _bytes) else edges
        shares = counts / max(1, counts.sum())
        axes.stairs(shares, places, fill=True, color=colour, alpha=0.25)
        axes.stairs(shares, places, color=colour, linewidth=1.6, label=short(split, 24))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    if unit is not None:
        name = unit
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: name(place)))
    tidy(axes, grid="y")


def _draw_classes(path: Path, report: QualityReport) -> None:
    many = len(report.class_names) > _MOST_CLASSES
    height = 3.4 if many else 0.9 + 0.26 * len(report.class_names)
    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.subplots()
    (_draw_ranks if many else _draw_bars)(axes, report)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def _draw_bars(axes: Axes, report: QualityReport) -> None:
    places = np.arange(len(report.class_names))
    left = np.zeros(len(places))
    for colour, split in zip(_colours(), report.splits, strict=False):
        counts = np.asarray(split.images_of_class)
        axes.barh(places, counts, left=left, height=0.7, color=colour, label=short(split.split, 24))
        left += counts
    names = [short(name, 28) for name in report.class_names]
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("images")
    tidy(axes, grid="x")


def _draw_ranks(axes: Axes, report: QualityReport) -> None:
    for colour, split in zip(_colours(), report.splits, strict=False):
        counts = np.sort(np.asarray(split.images_of_class))[::-1]
        ranks = np.arange(1, len(counts) + 1)
        axes.plot(ranks, counts, color=colour, linewidth=1.6, label=short(split.split, 24))
    axes.set_xlabel(f"classes from the largest to the smallest, of {len(report.class_names):,}")
    axes.set_ylabel("images")
    axes.set_ylim(bottom=0)
    tidy(axes, grid="both")


def _draw_rejections(path: Path, report: QualityReport) -> None:
    figure = Figure(figsize=(8.0, 0.9 + 0.34 * len(report.rejected)), layout="constrained")
    axes = figure.subplots()
    places = range(len(report.rejected))
    bars = axes.barh(places, [it.files for it in report.rejected], height=0.66, color=PALETTE[1])
    axes.bar_label(bars, [f"{it.files:,}" for it in report.rejected], padding=4, fontsize=9)
    axes.set_yticks(places, [it.reason.replace("_", " ") for it in report.rejected])
    axes.invert_yaxis()
    axes.set_xlabel("files refused")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.12)
    tidy(axes, grid="x")
    save(figure, path)


def _colours() -> tuple[str, ...]:
    """As many as anybody has splits, and more."""
    return PALETTE * 8


def _pixels(place: float) -> str:
    return f"{2**place:,.0f}"


def _bytes(place: float) -> str:
    prefix, value = 0, 2.0**place
    while value >= 1024:
        prefix, value = prefix + 1, value / 1024
    return f"{value:.3g} {('B', 'KiB', 'MiB', 'GiB')[prefix]}"


def _ratio(place: float) -> str:
    return f"{2**place:.2g} : 1" if place >= 0 else f"1 : {2**-place:.2g}"
