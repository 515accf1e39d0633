"""Pictures made of tiles: kernels, similarity maps, and what lies over images.

Axes: M images, S K tiles, A heads, R Q rows and columns of patches, H W pixels, C channels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.figures import INK, save, short

_TINY = 1e-30
"""Below every range that is scaled."""
_TILE_INCHES = 1.15
_TITLE_INCHES = 0.24
_NAME_CHARS = 16
_BRIGHTEST = 0.99
"""Share of the patches below the top of the colour scale; one bright patch must not hide all."""
_STRENGTH = 0.8
"""Opacity of the overlay where attention is strongest."""
_COLOUR_RANGE = (2.0, 98.0)
"""Percentiles of a component that become the darkest and the brightest."""
_HEADS_IN_ROW = 8
_FEWEST_IMAGES_OF_HEADS = 2


def draw_filters(
    path: Path, filters_KHWC: Float[np.ndarray, "K H W C"], *, ratios: Sequence[float]
) -> None:
    """Each kernel as a colour tile, scaled to its own range around grey; with its share, if any."""
    columns = min(7 if ratios else 8, len(filters_KHWC))
    panels = _tiles(len(filters_KHWC), columns, titles=bool(ratios))
    for index, (axes, filter_HWC) in enumerate(zip(panels.axes, filters_KHWC, strict=False)):
        furthest = max(float(np.abs(filter_HWC).max()), _TINY)
        axes.imshow(0.5 + filter_HWC / (2.0 * furthest), interpolation="nearest")
        if ratios:
            axes.set_title(f"{index + 1}: {ratios[index]:.1%}", fontsize=7.5, color=INK, pad=2)
    save(panels, path)


def draw_positions(
    path: Path, maps_SRQ: Float[np.ndarray, "S R Q"], shown: Sequence[tuple[int, int]]
) -> None:
    """A map for each position that is shown, in its place; on the axes its row and column."""
    columns = len({column for _, column in shown})
    rows = len(maps_SRQ) // columns
    _, height, width = maps_SRQ.shape
    tall = rows * height / width
    tile = max(0.78, 2.6 / tall)  # the colour bar's label wants so many inches
    size = (1.1 + tile * columns, 0.6 + tile * tall)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    lowest = min(0.0, float(maps_SRQ.min()))
    for axes, map_RQ, (row, column) in zip(panels.flat, maps_SRQ, shown, strict=True):
        drawn = axes.imshow(map_RQ, vmin=lowest, vmax=1.0, cmap="viridis", interpolation="nearest")
        axes.plot(column, row, marker="s", markersize=3, color="white", markeredgecolor=INK)
        _bare(axes)
        if column == shown[0][1]:
            axes.set_ylabel(str(row + 1), fontsize=8, rotation=0, va="center", labelpad=8)
        if row == shown[-1][0]:
            axes.set_xlabel(str(column + 1), fontsize=8)
    figure.supxlabel("column of the patch", fontsize=9)
    figure.supylabel("row of the patch", fontsize=9)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("cosine similarity with the other positions", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)


def draw_looks(
    path: Path,
    pixels_MHWC: UInt8[np.ndarray, "M H W C"],
    maps: Sequence[tuple[str, Float[np.ndarray, "M R Q"]]],
    *,
    names: Sequence[str],
) -> None:
    """Each image, and beside it the image under each of the maps."""
    wide = 1 + len(maps)
    groups = _groups(len(pixels_MHWC), wide)
    panels = _tiles(len(pixels_MHWC) * wide, groups * wide, titles=True, like=pixels_MHWC)
    for index, pixels_HWC in enumerate(pixels_MHWC):
        plain, *covered = panels.axes[index * wide : (index + 1) * wide]
        plain.imshow(pixels_HWC)
        _name(plain, names[index])
        for axes, (title, maps_MRQ) in zip(covered, maps, strict=True):
            overlay(axes, pixels_HWC, maps_MRQ[index])
            axes.set_title(title, fontsize=7.5, color=INK, pad=3)
    save(panels, path)


def draw_heads(
    path: Path,
    pixels_MHWC: UInt8[np.ndarray, "M H W C"],
    heads_MARQ: Float[np.ndarray, "M A R Q"],
    *,
    names: Sequence[str],
) -> None:
    """Some images under each head of the last attention, a block of rows for each image."""
    heads = heads_MARQ.shape[1]
    blocks = math.ceil(heads / _HEADS_IN_ROW)
    wide = 1 + min(heads, _HEADS_IN_ROW)
    images = min(len(pixels_MHWC), max(_FEWEST_IMAGES_OF_HEADS, 4 // blocks))
    panels = _tiles(images * blocks * wide, wide, titles=True, like=pixels_MHWC)
    for index in range(images):
        first = index * blocks * wide
        panels.axes[first].imshow(pixels_MHWC[index])
        _name(panels.axes[first], names[index])
        for head in range(heads):
            row, place = divmod(head, _HEADS_IN_ROW)
            axes = panels.axes[first + row * wide + 1 + place]
            overlay(axes, pixels_MHWC[index], heads_MARQ[index, head])
            axes.set_title(f"head {head + 1}", fontsize=7.5, color=INK, pad=3)
    save(panels, path)


def draw_feature_maps(
    path: Path,
    pixels_MHWC: UInt8[np.ndarray, "M H W C"],
    scores_MRQ3: Float[np.ndarray, "M R Q 3"],
    *,
    names: Sequence[str],
) -> None:
    """Each image, and beside it its patches in the colours of three components."""
    low, high = np.percentile(scores_MRQ3, _COLOUR_RANGE, axis=(0, 1, 2))
    spread = np.where(high > low, high - low, 1.0)
    colours_MRQ3 = np.clip((scores_MRQ3 - low) / spread, 0.0, 1.0)
    groups = _groups(len(pixels_MHWC), 2)
    panels = _tiles(len(pixels_MHWC) * 2, groups * 2, titles=True, like=pixels_MHWC)
    extent = _extent(pixels_MHWC[0])
    for index, pixels_HWC in enumerate(pixels_MHWC):
        plain, coloured = panels.axes[2 * index : 2 * index + 2]
        plain.imshow(pixels_HWC)
        _name(plain, names[index])
        coloured.imshow(colours_MRQ3[index], extent=extent, interpolation="nearest")
    save(panels, path)


def overlay(
    axes: Axes, pixels_HWC: UInt8[np.ndarray, "H W C"], shares_RQ: Float[np.ndarray, "R Q"]
) -> None:
    """The image in grey, and over it how much each patch gets, from dark to bright."""
    extent = _extent(pixels_HWC)
    # Grey, so that no colour of the photo is taken for attention.
    axes.imshow(pixels_HWC.mean(axis=2), extent=extent, cmap="gray", vmin=0, vmax=255)
    top = max(float(np.quantile(shares_RQ, _BRIGHTEST)), _TINY)
    heat_RQ = np.clip(shares_RQ / top, 0.0, 1.0)
    strength_RQ = _STRENGTH * np.sqrt(heat_RQ)
    axes.imshow(heat_RQ, extent=extent, cmap="inferno", alpha=strength_RQ, interpolation="bilinear")


def _extent(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> tuple[float, float, float, float]:
    height, width, _ = pixels_HWC.shape
    return (0, width, height, 0)


def _tiles(
    count: int,
    columns: int,
    *,
    titles: bool,
    like: UInt8[np.ndarray, "M H W C"] | None = None,
) -> Figure:
    """A figure of `count` or more panels without axes, each of the shape of the images."""
    rows = math.ceil(count / columns)
    tall = 1.0 if like is None else float(like.shape[1] / like.shape[2])
    high = _TILE_INCHES * tall + (_TITLE_INCHES if titles else 0.04)
    size = (columns * (_TILE_INCHES + 0.04), rows * high)
    figure = Figure(figsize=size, layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None  # noqa: S101 - it was asked for in the line above
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[call-arg]
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    return figure


def _groups(images: int, wide: int) -> int:
    """Images side by side: as many as make up to about eight tiles in a row."""
    return max(1, min(images, 8 // wide))


def _name(axes: Axes, name: str) -> None:
    axes.set_title(
        short(name, _NAME_CHARS), fontsize=7.5, color=INK, pad=3, parse_math=False, weight="bold"
    )


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
