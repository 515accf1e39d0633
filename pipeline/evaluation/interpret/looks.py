"""Where a model looks: its last attention, and attention followed through all blocks (paper, D.8).

Axes: B images, A heads, T tokens, R Q rows and columns of patches, C channels, H W pixels.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.model.attention_maps import POOLING, Attended, Places, each_attention, rows_read
from pipeline.model.backbone import Backbone
from schemas.errors import SpecError

Reads = Literal["class token", "pooling query", "mean over patches"]


class LooksAt(NamedTuple):
    """How much of the attention each patch gets; leading tokens left out, the rest adds up to 1."""

    reads: Reads
    """Whose attention it is."""
    last_BRQ: Float[Tensor, "B R Q"]
    """Of the last attention, mean over its heads."""
    heads_BARQ: Float[Tensor, "B A R Q"]
    """Of the last attention, head by head."""
    rollout_BRQ: Float[Tensor, "B R Q"]
    """Followed through all blocks."""


def look(model: Backbone, pixels_BCHW: Float[Tensor, "B C H W"]) -> LooksAt:
    """Follow attention from what the model pools with back to the patches.

    That is the class token (with a distillation token, the mean of both), the query of an attention
    pooling, or, where patches are averaged, the mean over all that patches take.

    Raises:
        SpecError: If the model has no attention over the whole image.
    """
    follower = _Follower(model)
    each_attention(model, pixels_BCHW, follower.see)
    return follower.result()


def rolled(
    through_BTT: Float[Tensor, "B T T"] | None, weights_BATT: Float[Tensor, "B A T T"]
) -> Float[Tensor, "B T T"]:
    """One step of rollout (Abnar & Zuidema 2020): heads averaged, the residual counted half.

    Args:
        through_BTT: What tokens before this layer hold of the first ones; None: only themselves.
        weights_BATT: Attention of this layer.

    Returns:
        What tokens after the layer hold of the first ones; rows sum to 1.
    """
    mean_BTT = weights_BATT.mean(dim=1)
    step_BTT = (mean_BTT + torch.eye(mean_BTT.shape[-1], device=mean_BTT.device)) / 2
    return step_BTT if through_BTT is None else step_BTT @ through_BTT


class _Follower:
    """Keeps one square of tokens, and the last attention of those that count."""

    def __init__(self, model: Backbone) -> None:
        self._model = model
        self._through_BTT: Tensor | None = None
        self._last: tuple[Reads, Places, Tensor, Tensor] | None = None

    def see(self, attended: Attended) -> None:
        layer, places, weights, whole = attended
        if not whole:
            raise SpecError("no token of axial blocks sees the whole image")
        if layer == POOLING:
            assert self._through_BTT is not None  # noqa: S101 - blocks come before
            heads_BAT = weights[:, :, 0]
            followed_BT = (heads_BAT.mean(dim=1)[:, None] @ self._through_BTT)[:, 0]
            self._last = "pooling query", places, heads_BAT, followed_BT
            return
        self._through_BTT = rolled(self._through_BTT, weights)
        rows = rows_read(self._model, places)
        reads: Reads = "mean over patches" if rows.stop is None else "class token"
        followed_BT = self._through_BTT[:, rows].mean(dim=1)
        self._last = reads, places, weights[:, :, rows].mean(dim=2), followed_BT

    def result(self) -> LooksAt:
        assert self._last is not None  # noqa: S101 - a model without attention was refused
        reads, places, heads_BAT, followed_BT = self._last
        return LooksAt(
            reads,
            last_BRQ=_shares(heads_BAT.mean(dim=1), places),
            heads_BARQ=_shares(heads_BAT, places),
            rollout_BRQ=_shares(followed_BT, places),
        )


def _shares(weights_T: Float[Tensor, "*lead T"], places: Places) -> Float[Tensor, "*lead R Q"]:
    patches_N = weights_T[..., places.leading :]
    total = patches_N.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(patches_N.dtype).tiny)
    return (patches_N / total).reshape(*patches_N.shape[:-1], places.rows, places.columns).cpu()
