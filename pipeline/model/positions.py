"""Position embeddings for another grid: interpolated in 2-D, the class token's slot untouched."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from schemas.model import ViTSpec


def resize_positions(position_ND: Tensor, source: ViTSpec, target: ViTSpec) -> Tensor:
    """Positions learned on the grid of `source`, as `target`'s grid needs them.

    Args:
        position_ND: One row for each patch, row by row; with `cls` pooling the token's row first.
        source: The model that the positions come from.
        target: Its grid and `position_resize` decide; the pooling is that of `source`.

    Returns:
        [N', D], the very same tensor where the grids are equal.
    """
    if source.grid == target.grid:
        return position_ND
    slots = int(source.pool == "cls")
    rows, columns = source.grid
    field_1DHW = position_ND[slots:].T.reshape(1, -1, rows, columns)
    resized_1DHW = F.interpolate(
        field_1DHW,
        size=target.grid,
        mode="bilinear" if target.position_resize == "bilinear" else "bicubic",
        antialias=target.position_resize == "bicubic_antialias",
        align_corners=False,
    )
    patches_ND = resized_1DHW.flatten(2)[0].T
    return torch.cat([position_ND[:slots], patches_ND]).contiguous()
