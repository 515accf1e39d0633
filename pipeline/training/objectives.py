"""Losses: what a batch and a model are to each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

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
        pixels_BHWC = torch.from_numpy(batch.pixels_BHWC).to(self.device)
        label_B = torch.from_numpy(batch.label_B).to(self.device)
        logits_BK = model(normalise(pixels_BHWC, self.model)).float()
        return F.cross_entropy(logits_BK, label_B, label_smoothing=self.label_smoothing)
