"""Tables of positions: how they are made, and how those of one grid become those of another.

S leading tokens with a position, N patches, D width, T all tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from schemas.model import PositionResize, ViTSpec

_TEMPERATURE = 10_000.0
_DINOV2_OFFSET = 0.1
"""Added to the new number of rows and columns before it is divided by the old."""


def sincos_2d(spec: ViTSpec) -> Tensor:
    """The fixed table of `spec`, [S + N, D] in fp32: zero for leading tokens.

    As in big_vision: sine and cosine of the column, then of the row, times D / 4 frequencies from 1
    down to 1 / 10,000, both included. MAE's table has the same order, but its frequencies stop one
    step short: w^(-4 i / D) instead of w^(-i / (D / 4 - 1)); it is imported as a learned table.
    """
    steps = spec.width // 4
    power = torch.arange(steps, dtype=torch.float64, device="cpu") / (steps - 1)
    return F.pad(waves(spec.grid, power), (0, 0, spec.slots, 0)).to(torch.float32)


def waves(grid: tuple[int, int], power: Tensor) -> Tensor:
    """Sine and cosine of each patch's column, then of its row, times 10,000^(-power).

    Args:
        grid: Rows and columns.
        power: D / 4 numbers, float64, on the CPU.

    Returns:
        [N, D] in float64.
    """
    rows, columns = grid
    omega = _TEMPERATURE**-power
    y, x = (torch.arange(side, dtype=torch.float64, device="cpu") for side in (rows, columns))
    row_N, column_N = y.repeat_interleave(columns), x.repeat(rows)
    angles = [place_N[:, None] * omega for place_N in (column_N, row_N)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def crossed(rows: Tensor, columns: Tensor) -> Tensor:
    """A position for each patch from one table for each side: [..., N, D], the column's half first.

    Args:
        rows: [..., rows, D / 2].
        columns: [..., columns, D / 2].
    """
    shape = (*rows.shape[:-1], *columns.shape[-2:])
    column = columns.unsqueeze(-3).expand(shape)
    row = rows.unsqueeze(-2).expand(shape)
    return torch.cat([column, row], dim=-1).flatten(-3, -2)


def for_all_tokens(position_ND: Tensor, spec: ViTSpec) -> Tensor:
    """Rows of zeros put in for leading tokens that have no position: [S + N, D] -> [T, D]."""
    if spec.slots == spec.leading:
        return position_ND
    slots, patches = position_ND[: spec.slots], position_ND[spec.slots :]
    before = int(spec.pool == "cls" and not spec.class_position)
    return torch.cat([F.pad(slots, (0, 0, before, spec.registers)), patches])


def resized_tables(
    weights: Mapping[str, Tensor], source: ViTSpec, target: ViTSpec
) -> dict[str, Tensor]:
    """Every parameter of `weights` that depends on the grid, as the grid of `target` needs it.

    Tables in one dimension (`learned_2d`) are interpolated in one. Keys of relative distances too:
    from -(N - 1) .. N - 1 to -(N' - 1) .. N' - 1, where the distance 0 stays what it is.
    """
    lengths = dict(zip(("position_rows", "position_columns"), target.grid, strict=True))
    resized = {}
    for name, tensor in weights.items():
        if name == "position":
            resized[name] = resize_positions(tensor, source, target)
        elif name in lengths:
            resized[name] = _resize_line(tensor, lengths[name], target.position_resize)
        elif name.endswith(".attention.relative"):
            length = 2 * _line_of(name, target) - 1
            resized[name] = _resize_line(tensor, length, target.position_resize)
    return resized


def resize_positions(position_ND: Tensor, source: ViTSpec, target: ViTSpec) -> Tensor:
    """Positions learned on the grid of `source`, as `target`'s grid needs them.

    Args:
        position_ND: [..., S + N, D]: a row for each leading token that has a position, then one for
            each patch, in reading order.
        source: The model that the positions come from.
        target: Its grid and `position_resize` decide; leading tokens are those of `source`.

    Returns:
        [..., S + N', D], the very same tensor where the grids are equal.
    """
    if source.grid == target.grid:
        return position_ND
    slots, patches = position_ND[..., : source.slots, :], position_ND[..., source.slots :, :]
    grid_BHWD = patches.reshape(*patches.shape[:-2], *source.grid, -1)
    grid_BDHW = grid_BHWD.movedim(-1, -3)
    resized_BDHW = _resample(grid_BDHW, target.grid, target.position_resize)
    return torch.cat([slots, resized_BDHW.movedim(-3, -1).flatten(-3, -2)], dim=-2).contiguous()


def _line_of(name: str, spec: ViTSpec) -> int:
    """Patches in one sequence of the relative attention of this name."""
    if not spec.axial:
        return spec.patches
    return spec.grid[1] if ".rows." in name else spec.grid[0]


def _resize_line(table_LD: Tensor, length: int, method: PositionResize) -> Tensor:
    """[..., L, D] -> [..., L', D]."""
    if table_LD.shape[-2] == length:
        return table_LD
    row_BD1L = table_LD.transpose(-1, -2).unsqueeze(-2)
    resized_BD1L = _resample(row_BD1L, (1, length), method)
    return resized_BD1L.squeeze(-2).transpose(-1, -2).contiguous()


def _resample(grid_BDHW: Tensor, size: tuple[int, int], method: PositionResize) -> Tensor:
    """Interpolate [..., D, H, W] in the last two axes.

    - `jax`: `scipy.ndimage.zoom` of order 1, as the authors' code: linear, corners on corners.
    - `timm`: `resample_abs_pos_embed`: bicubic, antialiased; also Hugging Face's DINOv2 with
      registers.
    - `hf`: `interpolate_pos_encoding` of Hugging Face's ViT and DINOv2: bicubic.
    - `dinov2`: the authors' code: bicubic, with steps for a grid that is larger by 0.1.
    """
    flat = grid_BDHW.reshape(-1, *grid_BDHW.shape[-3:])
    if method == "jax":  # scipy computes in float64
        flat = F.interpolate(flat.double(), size, mode="bilinear", align_corners=True).to(flat)
    elif method == "dinov2":
        sides = zip(size, flat.shape[2:], strict=True)
        factors = [(new + _DINOV2_OFFSET) / old for new, old in sides]
        flat = F.interpolate(flat, scale_factor=factors, mode="bicubic", align_corners=False)
    elif method == "hf":
        flat = F.interpolate(flat, size, mode="bicubic", align_corners=False)
    else:
        flat = _antialiased(flat, size)
    return flat.reshape(*grid_BDHW.shape[:-2], *size)


def _antialiased(grid_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
    """As `_bicubic_antialiased`, also where one column comes out, which torch 2.13 gets wrong."""
    height, (rows, columns) = grid_BDHW.shape[2], size
    if columns > 1:
        return _bicubic_antialiased(grid_BDHW, size)
    narrow_BDH1 = _bicubic_antialiased(grid_BDHW, (height, 1))
    return _bicubic_antialiased(narrow_BDH1.transpose(2, 3), (1, rows)).transpose(2, 3)


def _bicubic_antialiased(grid_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(grid_BDHW, size, mode="bicubic", align_corners=False, antialias=True)
