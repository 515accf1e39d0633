"""How alike the positions of patches are (paper, Figure 7 centre).

Axes: N patches, S patches that are shown, R Q rows and columns of the grid, D width.
"""

import numpy as np
from jaxtyping import Float

from pipeline.model.anatomy import position_table
from pipeline.model.backbone import Backbone
from pipeline.model.vit import ViT
from schemas.interpret import Positions

POSITIONS_ARRAY = "positions"
_MOST_SHOWN = 7
"""Along each side of the grid, evenly spread; the paper shows 7 x 7."""


def positions_of(model: Backbone) -> tuple[Positions, Float[np.ndarray, "S R Q"]]:
    """Cosine similarity of the positions of some patches with those of all.

    Raises:
        SpecError: If the model adds no positions to its patches.
    """
    table = position_table(model)
    rows, columns = table.grid
    table_ND = table.table_ND.detach().cpu().double().numpy()
    shown = tuple((row, column) for row in _spread(rows) for column in _spread(columns))
    maps_SN = similarities(table_ND, np.array([row * columns + column for row, column in shown]))
    every = isinstance(model, ViT) and model.spec.position_at == "every_layer"
    section = Positions(grid=table.grid, shown=shown, every_layer=every, array=POSITIONS_ARRAY)
    return section, maps_SN.reshape(-1, rows, columns).astype(np.float32)


def similarities(
    table_ND: Float[np.ndarray, "N D"], places_S: np.ndarray
) -> Float[np.ndarray, "S N"]:
    """Cosines of some vectors with all, -1 to 1; 0 for a vector of zeros."""
    lengths_N = np.linalg.norm(table_ND, axis=1)
    unit_ND = table_ND / np.where(lengths_N > 0.0, lengths_N, 1.0)[:, None]
    cosines_SN: np.ndarray = np.clip(unit_ND[places_S] @ unit_ND.T, -1.0, 1.0)
    return cosines_SN


def _spread(side: int) -> list[int]:
    """Places along a side: all, or the middles of as many equal parts as are shown."""
    shown = min(side, _MOST_SHOWN)
    return [int((part + 0.5) * side / shown) for part in range(shown)]
