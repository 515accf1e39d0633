"""Learning from labels. B batch, K classes."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.training.objectives.common import LabelledBatch, Setting, partners
from schemas.objectives import SupervisedSpec


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy on the labels; see `SupervisedSpec`."""

    setting: Setting
    spec: SupervisedSpec
    label_smoothing: float

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Mean over the batch, a scalar in fp32."""
        noise = self.setting.noise(batch.places, training=model.training)
        logits_BK = model(self.setting.pixels(batch), noise=noise)
        return self.setting.mean(self.losses(logits_BK, batch), batch)

    def losses(self, logits_BK: Tensor, batch: LabelledBatch) -> Tensor:
        """The loss of each sample, [B]; of a mixed one by both labels."""
        label_B = self.setting.tensor(batch.label_B)
        if batch.mix is None:
            return self._losses(logits_BK, label_B)
        keep_B = self.setting.tensor(batch.mix.keep_B)
        own_B, other_B = (self._losses(logits_BK, it) for it in (label_B, partners(label_B)))
        return keep_B * own_B + (1 - keep_B) * other_B

    def _losses(self, logits_BK: Tensor, label_B: Tensor) -> Tensor:
        smoothing = self.label_smoothing
        if self.spec.loss == "softmax":
            return F.cross_entropy(
                logits_BK.float(), label_B, label_smoothing=smoothing, reduction="none"
            )
        classes = logits_BK.shape[1]
        target_BK = F.one_hot(label_B, classes) * (1 - smoothing) + smoothing / classes
        each_BK = F.binary_cross_entropy_with_logits(logits_BK.float(), target_BK, reduction="none")
        return each_BK.sum(dim=1)
