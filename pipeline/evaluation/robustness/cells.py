"""Images cut into a grid of cells, which are made black or change places.

An axis of `length` pixels is cut at `index * length // cells`, so cells differ by a pixel where
their number does not divide it. NumPy on bytes: what comes out is exact.

Axes: B batch, H W pixels, C channels, N cells in reading order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer, UInt8


@dataclass(frozen=True)
class CellGrid:
    """A grid of rows and columns over images of one size.

    Raises:
        ValueError: If there are more cells than pixels along a side.
    """

    grid: tuple[int, int]
    image_px: tuple[int, int]
    offset_px: int = 0
    """How far the grid is moved down and to the right; what leaves an edge comes back at the
    other, so the number of cells stays."""

    def __post_init__(self) -> None:
        if any(cells > side for cells, side in zip(self.grid, self.image_px, strict=True)):
            raise ValueError(
                f"a grid of {self.in_words} has more cells than an image of "
                f"{self.image_px[0]} x {self.image_px[1]} px has pixels"
            )

    @property
    def in_words(self) -> str:
        """Rows x columns."""
        return f"{self.grid[0]}x{self.grid[1]}"

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.grid[0] * self.grid[1]

    def places(self) -> Integer[np.ndarray, "H W"]:
        """The cell of each pixel."""
        (rows, columns), (height, width) = self.grid, self.image_px
        row_H = _cell_of(height, rows, self.offset_px)
        column_W = _cell_of(width, columns, self.offset_px)
        place_HW: np.ndarray = row_H[:, None] * columns + column_W[None, :]
        return place_HW


def first_dropped(order_BN: Integer[np.ndarray, "B N"], percent: int) -> Bool[np.ndarray, "B N"]:
    """Which cells go: the first `percent * N // 100` of each image's order."""
    images, cells = order_BN.shape
    dropped_BN = np.zeros((images, cells), np.bool_)
    chosen = order_BN[:, : percent * cells // 100]
    np.put_along_axis(dropped_BN, chosen, np.ones_like(chosen, np.bool_), axis=1)
    return dropped_BN


def drop_cells(
    pixels_BHWC: UInt8[np.ndarray, "B H W C"],
    dropped_BN: Bool[np.ndarray, "B N"],
    grid: CellGrid,
) -> UInt8[np.ndarray, "B H W C"]:
    """Images with the chosen cells black; all else is as it was."""
    kept_BHW = ~dropped_BN[:, grid.places()]
    holed_BHWC: np.ndarray = pixels_BHWC * kept_BHW[..., None]
    return holed_BHWC


def shuffle_cells(
    pixels_BHWC: UInt8[np.ndarray, "B H W C"],
    order_BN: Integer[np.ndarray, "B N"],
    grid: CellGrid,
) -> UInt8[np.ndarray, "B H W C"]:
    """Images in which place n shows cell `order_BN[:, n]`.

    A cell that is a pixel larger or smaller than its new place is sampled at the nearest pixel.
    """
    rows, columns = (
        _Cuts(side, cells) for side, cells in zip(grid.image_px, grid.grid, strict=True)
    )
    source_BHW = order_BN[:, grid.places()]
    row_BHW, column_BHW = np.divmod(source_BHW, grid.grid[1])
    y_BHW = rows.seen_from(row_BHW, rows.local[:, None], rows.sizes[rows.cell][:, None])
    x_BHW = columns.seen_from(column_BHW, columns.local, columns.sizes[columns.cell])
    image_B11 = np.arange(len(pixels_BHWC))[:, None, None]
    moved_BHWC: np.ndarray = pixels_BHWC[image_B11, y_BHW, x_BHW]
    return moved_BHWC


class _Cuts:
    """One axis: the cell of each pixel, its place in the cell, and the cells' first pixels."""

    def __init__(self, length: int, cells: int) -> None:
        self.cell = _cell_of(length, cells, 0)
        self.sizes = np.bincount(self.cell, minlength=cells)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.local = np.arange(length) - self.starts[self.cell]

    def seen_from(self, cell: np.ndarray, local: np.ndarray, size: np.ndarray) -> np.ndarray:
        """The pixel of `cell` that stands at `local` of a place of `size` pixels."""
        seen: np.ndarray = self.starts[cell] + local * self.sizes[cell] // size
        return seen


def _cell_of(length: int, cells: int, offset: int) -> Integer[np.ndarray, " length"]:
    """The cell of each pixel of an axis: the cuts are at `index * length // cells`."""
    cuts = np.arange(1, cells) * length // cells
    return np.searchsorted(cuts, (np.arange(length) - offset) % length, side="right")
