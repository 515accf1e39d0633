"""The figure of a comparison: differences of accuracy with their intervals."""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.evaluation.figures import INK, PALETTE, save, short, tidy
from schemas.comparison import ComparisonReport
from schemas.report import FigureNote

DIFFERENCES_FIGURE = "differences.png"
_CERTAIN = 0.05
_MOST_PAIRS = 45
_NAME_CHARS = 30


def draw_differences(path: Path, report: ComparisonReport) -> FigureNote:
    """One line for each pair, in points; full where the adjusted p is below 0.05."""
    pairs = report.pairs[:_MOST_PAIRS]
    figure = Figure(figsize=(8.0, 1.2 + 0.42 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for place, pair in enumerate(pairs):
        middle, low, high = (
            100 * value for value in (pair.difference_ratio, pair.low_ratio, pair.high_ratio)
        )
        told_apart = pair.holm_p < _CERTAIN
        axes.errorbar(
            middle,
            place,
            xerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            fmt="o",
            color=PALETTE[0] if told_apart else PALETTE[5],
            markerfacecolor=PALETTE[0] if told_apart else "white",
            capsize=3,
            linewidth=1.4,
        )
    names = [f"{short(it.first, _NAME_CHARS)} - {short(it.second, _NAME_CHARS)}" for it in pairs]
    axes.set_yticks(range(len(pairs)), names, parse_math=False)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel("difference of top-1 accuracy in points, 95 % interval")
    tidy(axes, grid="x")
    save(figure, path)
    left_out = len(report.pairs) - len(pairs)
    caption = (
        f"First less second, on the same {report.images} images; intervals by a paired bootstrap "
        f"of {report.resamples} resamples. Filled: p below {_CERTAIN:g} by McNemar's exact test, "
        "adjusted for all pairs (Holm)."
    )
    if left_out:
        caption += f" {left_out} more pairs are in the table."
    return FigureNote(file=path.name, title="Differences of accuracy", caption=caption)
