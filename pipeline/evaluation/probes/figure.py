"""The figure of a probe: accuracy by the number of training images of each class."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from pipeline.evaluation.figures import INK, PALETTE, save, tidy
from schemas.probing import FewShotMean, FewShotResult, ProbeReport
from schemas.report import FigureNote

SHOTS_FIGURE = "shots.png"


def draw_shots(path: Path, report: ProbeReport) -> FigureNote:
    """Few-shot accuracy with its draws and interval; methods that learn from all as lines across.

    The report has few-shot results.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    _draw_means(axes, report.few_shot_means)
    _draw_draws(axes, report.few_shot)
    for number, found in enumerate(report.accuracies, start=1):
        colour = PALETTE[number % len(PALETTE)]
        label = f"{found.method.replace('_', ' ')}, all {report.train_images} images"
        axes.axhspan(found.low_ratio, found.high_ratio, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(found.top1_ratio, color=colour, linewidth=1.4, linestyle="--", label=label)
    shots = [mean.shots for mean in report.few_shot_means]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(shots))
    axes.xaxis.set_major_formatter(FixedFormatter([str(count) for count in shots]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training images of each class")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(f"top-1 accuracy on {report.split}")
    tidy(axes, grid="both")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)
    return FigureNote(file=path.name, title="Accuracy by shots", caption=_caption(report))


def _draw_means(axes: Axes, means: Sequence[FewShotMean]) -> None:
    ordered = sorted(means, key=lambda mean: mean.shots)
    shots = [mean.shots for mean in ordered]
    axes.plot(
        shots,
        [mean.mean_ratio for mean in ordered],
        color=PALETTE[0],
        linewidth=1.8,
        marker="o",
        label=f"few-shot, mean of {ordered[0].draws}",
    )
    if ordered[0].draws > 1:
        low, high = zip(*((mean.low_ratio, mean.high_ratio) for mean in ordered), strict=True)
        axes.fill_between(shots, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)


def _draw_draws(axes: Axes, results: Sequence[FewShotResult]) -> None:
    shots = [result.shots for result in results]
    ratios = [result.accuracy.top1_ratio for result in results]
    axes.scatter(shots, ratios, s=12, color=INK, alpha=0.6, zorder=3, label="one draw")


def _caption(report: ProbeReport) -> str:
    draws = report.few_shot_means[0].draws
    measured = f"measured on {sum(report.class_counts)} images of {report.split}"
    sentences = [
        f"Regularised least squares on frozen features, {measured}.",
        f"The band is the 95 % t-interval of the mean of {draws} draws." if draws > 1 else "",
        "Lines across learn from all training images; their bands are 95 % Wilson intervals."
        if report.accuracies
        else "",
    ]
    return " ".join(filter(None, sentences))
