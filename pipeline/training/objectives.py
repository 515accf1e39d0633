"""Losses: what a batch and a model are to each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.data.feed.mixing import Mix
from pipeline.model.vit import normalise
from schemas.model import ViTSpec


class LabelledBatch(Protocol):
    """Decoded images with their labels, as a loader yields them."""

    @property
    def pixels_BHWC(self) -> np.ndarray[Any, Any]:  # noqa: N802 - arrays carry their axes
        """Bytes, 0..255."""
        ...

    @property
    def label_B(self) -> np.ndarray[Any, Any]:  # noqa: N802
        """Class indices, int64."""
        ...

    @property
    def weight_B(self) -> np.ndarray[Any, Any] | None:  # noqa: N802
        """How much each sample counts, 1 on average over the global batch; None: all alike."""
        ...

    @property
    def mix(self) -> Mix | None:
        """How neighbours are mixed; None: not at all."""
        ...


class Objective(Protocol):
    """Mean loss of a batch, with the graph for its gradient."""

    def __call__(self, model: Callable[[Tensor], Tensor], batch: LabelledBatch) -> Tensor:
        """A scalar in fp32; `model` maps normalised pixels to logits."""
        ...


@dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy on the labels."""

    model: ViTSpec
    label_smoothing: float
    device: torch.device

    def __call__(self, model: Callable[[Tensor], Tensor], batch: LabelledBatch) -> Tensor:
        """Mean over the batch, a scalar in fp32."""
        pixels_BCHW = normalise(self._tensor(batch.pixels_BHWC), self.model)
        label_B = self._tensor(batch.label_B)
        if batch.mix is None:
            loss_B = self._losses(model(pixels_BCHW), label_B)
        else:
            keep_B = self._tensor(batch.mix.keep_B)
            logits_BK = model(blend(pixels_BCHW, keep_B, self._tensor(batch.mix.box_B4)))
            own_B, other_B = (self._losses(logits_BK, it) for it in (label_B, partners(label_B)))
            loss_B = keep_B * own_B + (1 - keep_B) * other_B
        if batch.weight_B is not None:
            loss_B = self._tensor(batch.weight_B) * loss_B
        return loss_B.mean()

    def _losses(self, logits_BK: Tensor, label_B: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_BK.float(), label_B, label_smoothing=self.label_smoothing, reduction="none"
        )

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def partners(values: Tensor) -> Tensor:
    """Neighbours of a batch [B, ...] swapped: what sample 2i has goes to 2i + 1 and back."""
    return values.reshape(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)


def blend(pixels_BCHW: Tensor, keep_B: Tensor, box_B4: Tensor) -> Tensor:
    """Mix each picture with its partner's.

    Args:
        pixels_BCHW: Normalised pictures; mixing them is mixing the bytes.
        keep_B: What mixup keeps of a picture; of no use where there is a rectangle.
        box_B4: Left, top, right, bottom of the rectangle that CutMix takes from the partner;
            an empty one asks for mixup.
    """
    height, width = pixels_BCHW.shape[2:]
    left_B11, top_B11, right_B11, bottom_B11 = box_B4[..., None, None].unbind(1)
    rows_H1 = torch.arange(height, device=pixels_BCHW.device)[:, None]
    columns_W = torch.arange(width, device=pixels_BCHW.device)
    outside_BHW = ~(
        (rows_H1 >= top_B11)
        & (rows_H1 < bottom_B11)
        & (columns_W >= left_B11)
        & (columns_W < right_B11)
    )
    cuts_B11 = right_B11 > left_B11
    share_B1HW = torch.where(cuts_B11, outside_BHW.float(), keep_B[:, None, None])[:, None]
    return share_B1HW * pixels_BCHW + (1 - share_B1HW) * partners(pixels_BCHW)
