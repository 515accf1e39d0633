"""How far heads look, how sharply, and how much they give to leading tokens (paper, D.7).

Axes: S sequences, A heads, N patches, T all tokens.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.model.attention_maps import POOLING, Attended, Places
from schemas.errors import SpecError
from schemas.interpret import Attention

_AT_ONCE = 2**22
"""Weights that are held in float64."""
PatchPx = tuple[float, float]
"""Height and width of what a patch covers, in pixels."""


def patch_distances(places: Places, patch_px: PatchPx) -> Float[Tensor, "N N"]:
    """Pixels between the centres of any two patches, in float64."""
    rows = torch.arange(places.rows, dtype=torch.float64).repeat_interleave(places.columns)
    columns = torch.arange(places.columns, dtype=torch.float64).repeat(places.rows)
    centres_N2 = torch.stack([rows * patch_px[0], columns * patch_px[1]], dim=1)
    return torch.cdist(centres_N2, centres_N2, compute_mode="donot_use_mm_for_euclid_dist")


def uniform_distance(places: Places, patch_px: PatchPx) -> float:
    """Mean pixels between two patches drawn at random, in closed form.

    The offset (y, x) is that of (rows - |y|) x (columns - |x|) pairs.
    """
    y, x = np.arange(-places.rows + 1, places.rows), np.arange(-places.columns + 1, places.columns)
    pairs = np.multiply.outer(places.rows - np.abs(y), places.columns - np.abs(x))
    lengths = np.hypot(*np.meshgrid(y * patch_px[0], x * patch_px[1], indexing="ij"))
    return float((pairs * lengths).sum() / places.patches**2)


class AttentionTotals:
    """Sums over images, so that nothing grows with their number; O(layers x heads)."""

    def __init__(self, image_px: tuple[int, int], grid: tuple[int, int] | None) -> None:
        """Of images of this size; without a `grid`, that of the attention itself is the image's."""
        self._image_px, self._grid = image_px, grid
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._uniform: dict[str, float] = {}
        self._distances = lru_cache(maxsize=2)(patch_distances)

    def add(self, attended: Attended) -> None:
        """Count the attention of one layer over one batch; that of a pooling is left out."""
        if attended.layer == POOLING:
            return
        layer, places, weights_SATT, _ = attended
        patch_px = self._patch_px(places)
        distance_NN = self._distances(places, patch_px)
        sums_3A = torch.zeros(3, weights_SATT.shape[1], dtype=torch.float64)
        for part_SATT in torch.split(weights_SATT, max(1, _AT_ONCE // weights_SATT[0].numel())):
            asking_SANT = part_SATT[:, :, places.leading :].cpu().double()
            sums_3A += _sums(asking_SANT, places, distance_NN)
        self._sums[layer] = self._sums.get(layer, 0) + sums_3A
        self._counts[layer] = self._counts.get(layer, 0) + len(weights_SATT)
        self._uniform[layer] = uniform_distance(places, patch_px)
        self._last_patch_px = patch_px

    def result(self, images: int) -> Attention:
        """Means over all that was added.

        Raises:
            SpecError: If nothing was.
        """
        if not self._sums:
            raise SpecError("the model has no attention among its patches")
        means = [self._sums[layer] / self._counts[layer] for layer in self._sums]
        distances, entropies, leading = (
            tuple(tuple(mean_3A[which].tolist()) for mean_3A in means) for which in range(3)
        )
        return Attention(
            images=images,
            patch_px=self._last_patch_px,
            layers=tuple(self._sums),
            distances_px=distances,
            uniform_distances_px=tuple(self._uniform.values()),
            entropies=entropies,
            leading_ratios=leading,
        )

    def _patch_px(self, places: Places) -> PatchPx:
        rows, columns = self._grid or (places.rows, places.columns)
        return self._image_px[0] / rows, self._image_px[1] / columns


def _sums(
    asking_SANT: Float[Tensor, "S A N T"], places: Places, distance_NN: Float[Tensor, "N N"]
) -> Float[Tensor, "3 A"]:
    """Distance, entropy and share of leading tokens: means over patches, sums over sequences."""
    to_patches_SANN = asking_SANT[..., places.leading :]
    shares_SAN = to_patches_SANN.sum(dim=-1)
    weighted_SAN = (to_patches_SANN * distance_NN).sum(dim=-1)
    distance_SAN = weighted_SAN / shares_SAN.clamp_min(torch.finfo(torch.float64).tiny)
    largest = math.log(asking_SANT.shape[-1]) or 1.0
    entropy_SAN = torch.special.entr(asking_SANT).sum(dim=-1) / largest
    leading_SAN = asking_SANT[..., : places.leading].sum(dim=-1)
    parts = (distance_SAN, entropy_SAN, leading_SAN)
    return torch.stack([part_SAN.mean(dim=2).sum(dim=0) for part_SAN in parts])
