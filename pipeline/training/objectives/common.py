"""What all objectives share: batches as they come, pictures on the device, and chance.

Whatever is drawn is a function of (seed, place of the sample, purpose), so that a batch meets the
same chances in any world, at any micro-batch and after any interruption.

B batch, C channels, H W pixels.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.feed.augment import uniforms
from pipeline.data.feed.course import Places
from pipeline.data.feed.mixing import Mix
from pipeline.model.backbone import normalise
from pipeline.model.noise import ForwardNoise, branches, training_noise
from schemas.backbones import BackboneSpec
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
    def places(self) -> Places:
        """Where in the run each sample stands."""
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

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """A scalar in fp32.

        Args:
            model: What is trained, or an engine around it; drops branches and patches only while
                its `training` is true.
            batch: Any number of samples.
        """
        ...


@dataclass(frozen=True)
class Setting:
    """What an objective works with."""

    model: BackboneSpec
    seed: int
    """Of the experiment."""
    device: torch.device

    @property
    def vit(self) -> ViTSpec:
        """The model, for an objective that only a ViT can have."""
        assert isinstance(self.model, ViTSpec), "the spec of the stage sees to it"  # noqa: S101
        return self.model

    def tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        """The array on the device."""
        return torch.from_numpy(array).to(self.device)

    def pixels(self, batch: LabelledBatch, model: BackboneSpec | None = None) -> Tensor:
        """Pictures [B, C, H, W] as `model` (or the trained one) takes them, mixed if they are."""
        pixels_BCHW = normalise(self.tensor(batch.pixels_BHWC), model or self.model)
        if batch.mix is None:
            return pixels_BCHW
        return blend(pixels_BCHW, self.tensor(batch.mix.keep_B), self.tensor(batch.mix.box_B4))

    def uniforms(self, purpose: str, places: Places, count: int) -> Tensor:
        """`count` numbers in [0, 1) for each sample, float64 [B, count], on the CPU."""
        return torch.from_numpy(uniforms(purpose, self.seed, places, count=count))

    def noise(self, places: Places, *, training: bool) -> ForwardNoise | None:
        """Which branches and patches each sample skips; None where the pass is deterministic."""
        spec = self.model
        if not training or not isinstance(spec, ViTSpec):
            return None  # what other models leave to chance, they draw themselves, as dropout is
        if not (spec.drop_path or spec.patch_dropout):
            return None
        path_BL = self.uniforms("drop_path", places, branches(spec) if spec.drop_path else 0)
        patch_BN = self.uniforms("patch_dropout", places, spec.patches if spec.patch_dropout else 0)
        return training_noise(spec, path_BL, patch_BN).to(self.device)

    def mean(self, loss_B: Tensor, batch: LabelledBatch) -> Tensor:
        """Mean over the batch, by the weights of its samples."""
        if batch.weight_B is not None:
            loss_B = self.tensor(batch.weight_B) * loss_B
        return loss_B.mean()


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
