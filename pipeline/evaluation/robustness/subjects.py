"""A model under test: what it answers, what it feels, and which way its loss rises.

Pixels are [B, H, W, C] with values from 0 to 255, bytes or float32: both are normalised by the same
arithmetic, so a change of zero changes nothing. The model is in evaluation mode throughout, and the
loss is a sum over images, so no image sees another.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Integer, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.evaluation.robustness.lesions import blocks_of
from pipeline.model.backbone import Backbone, normalise
from schemas.errors import StageFailedError

Bytes = UInt8[np.ndarray, "B H W C"]
Values = Float32[Tensor, "B H W C"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the stage that made it."""

    stage: str
    model: Backbone
    blocks: Mapping[str, nn.Module]
    """Those of `blocks_of`."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def values(self, pixels_BHWC: Bytes) -> Values:
        """Pixels as float32 on the model's device, to be changed by less than a whole level."""
        return torch.from_numpy(pixels_BHWC).to(self.device, torch.float32)

    @torch.no_grad()
    def answers(self, pixels_BHWC: Bytes | Values) -> Int32[np.ndarray, " B"]:
        """The class of the largest logit, the first one of a tie.

        Raises:
            StageFailedError: If a logit is not finite.
        """
        logits_BK = self.model(self._seen(pixels_BHWC)).float()
        if not bool(torch.isfinite(logits_BK).all()):
            raise StageFailedError(
                f"{self.stage} answers with numbers that are not finite, so it cannot be measured",
                hint="look at the training loss; a smaller optim.peak_lr or clip_norm may help",
            )
        answer_B: np.ndarray = logits_BK.argmax(dim=1).cpu().numpy().astype(np.int32)
        return answer_B

    @torch.no_grad()
    def features(self, pixels_BHWC: Bytes) -> Float[np.ndarray, "B D"]:
        """What the head sees of each image: the class token of a ViT, pooled cells of a CNN."""
        features_BD: np.ndarray = self.model.forward_features(self._seen(pixels_BHWC)).cpu().numpy()
        return features_BD.astype(np.float64)

    def gradient(self, values_BHWC: Values, label_B: Integer[np.ndarray, " B"]) -> Values:
        """Of each image's cross-entropy by its values, under the softmax whatever the model has."""
        leaf = values_BHWC.detach().requires_grad_()
        with torch.enable_grad():
            logits_BK = self.model(self._seen(leaf)).float()
            label = torch.from_numpy(label_B).to(self.device, torch.int64)
            loss = F.cross_entropy(logits_BK, label, reduction="sum")
        (gradient_BHWC,) = torch.autograd.grad(loss, leaf)
        return gradient_BHWC

    def _seen(self, pixels_BHWC: Bytes | Values) -> Tensor:
        if isinstance(pixels_BHWC, np.ndarray):
            pixels_BHWC = torch.from_numpy(pixels_BHWC).to(self.device)
        # `normalise` works in place on what is float already.
        return normalise(pixels_BHWC.clone(), self.model.spec)


def subject_of(stage: str, model: Backbone) -> Subject:
    """The model in evaluation mode, its weights fixed, so that gradients stop at the pixels."""
    fixed = model.eval().requires_grad_(requires_grad=False)
    return Subject(stage, fixed, blocks_of(fixed))
