"""Learning from images alone: colours of corrupted patches, and pixels of hidden ones.

B batch, N patches, M chosen patches, V numbers in a patch, P side of a patch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.data.feed.course import Places
from pipeline.model.masked import Corruption
from pipeline.model.noise import ForwardNoise, lowest
from pipeline.model.vit import patchify
from pipeline.training.objectives.common import LabelledBatch, Setting
from schemas.objectives import COLOUR_LEVELS, MaeSpec, MaskedPatchSpec

_MASKED, _SWAPPED = 0.8, 0.1
"""Shares of the corrupted patches that a token and another patch replace (the paper, B.1.2)."""
_TARGET_EPS = 1e-6
"""Added to the variance of a patch, as in the authors' code of MAE."""


@dataclass(frozen=True)
class MaskedPatch:
    """Cross-entropy on the mean colour of each corrupted patch; see `MaskedPatchSpec`."""

    setting: Setting
    spec: MaskedPatchSpec

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Mean over all corrupted patches of the batch, a scalar in fp32."""
        setting = self.setting
        chosen_BM, corruption = self.corruption(batch.places)
        noise = setting.noise(batch.places, training=model.training)
        logits_BNK = model(setting.pixels(batch), corruption=corruption, noise=noise).float()
        colour_BN = colours(setting.tensor(batch.pixels_BHWC), setting.vit.patch_px)
        loss_BN = F.cross_entropy(logits_BNK.transpose(1, 2), colour_BN, reduction="none")
        return setting.mean(loss_BN.gather(1, chosen_BM).mean(dim=1), batch)

    def corruption(self, places: Places) -> tuple[Tensor, Corruption]:
        """The corrupted patches [B, M], and what stands where; all drawn by the sample's place."""
        patches = self.setting.vit.patches
        number_BN, kind_BN, other_BN = self.setting.uniforms("corrupt", places, 3 * patches).chunk(
            3, dim=1
        )
        chosen_BM = lowest(number_BN, self.spec.corrupted(patches))
        is_chosen_BN = torch.zeros_like(number_BN, dtype=torch.bool).scatter(
            1, chosen_BM, value=True
        )
        own_N = torch.arange(patches)
        another_BN = (other_BN * (patches - 1)).long()
        another_BN += another_BN >= own_N  # any patch but the one of the place
        swaps_BN = is_chosen_BN & (kind_BN >= _MASKED) & (kind_BN < _MASKED + _SWAPPED)
        corruption = Corruption(
            torch.where(swaps_BN, another_BN, own_N).to(self.setting.device),
            (is_chosen_BN & (kind_BN < _MASKED)).to(self.setting.device),
        )
        return chosen_BM.to(self.setting.device), corruption


def colours(pixels_BHWC: Tensor, side: int) -> Tensor:
    """Mean colour of each patch as a class [B, N]: three bits of red, then green, then blue.

    Args:
        pixels_BHWC: Bytes; the mean is exact.
        side: Of a patch.
    """
    patches_BNV = patchify(pixels_BHWC.permute(0, 3, 1, 2), side)
    values_BNCV = patches_BNV.view(*patches_BNV.shape[:2], -1, side * side)
    sum_BNC = values_BNCV.sum(dim=3, dtype=torch.int64)
    level_BNC = sum_BNC * COLOUR_LEVELS // (256 * side * side)
    base_C = torch.tensor([COLOUR_LEVELS**2, COLOUR_LEVELS, 1], device=level_BNC.device)
    return (level_BNC * base_C).sum(dim=2)


@dataclass(frozen=True)
class Autoencoding:
    """Mean squared error on the pixels of hidden patches; see `MaeSpec`."""

    setting: Setting
    spec: MaeSpec

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Mean over all hidden patches of the batch, a scalar in fp32."""
        setting = self.setting
        pixels_BCHW = setting.pixels(batch)
        kept_BM = self.kept(batch.places)
        noise = setting.noise(batch.places, training=model.training) or ForwardNoise()
        drawn_BNV = model(pixels_BCHW, noise=replace(noise, kept_patches_BM=kept_BM)).float()
        error_BN = (drawn_BNV - self.targets(pixels_BCHW)).square().mean(dim=2)
        hidden_BN = torch.ones_like(error_BN).scatter(1, kept_BM, 0.0)
        loss_B = (error_BN * hidden_BN).sum(dim=1) / hidden_BN.sum(dim=1)
        return setting.mean(loss_B, batch)

    def kept(self, places: Places) -> Tensor:
        """The patches that the encoder sees, [B, M], drawn by the sample's place."""
        patches = self.setting.vit.patches
        number_BN = self.setting.uniforms("mask", places, patches)
        return lowest(number_BN, self.spec.kept(patches)).to(self.setting.device)

    def targets(self, pixels_BCHW: Tensor) -> Tensor:
        """What is to be drawn: normalised pixels, patch by patch [B, N, V]."""
        target_BNV = patchify(pixels_BCHW, self.setting.vit.patch_px)
        if not self.spec.normalised_targets:
            return target_BNV
        mean_BN1 = target_BNV.mean(dim=2, keepdim=True)
        variance_BN1 = target_BNV.var(dim=2, keepdim=True)
        return (target_BNV - mean_BN1) / (variance_BN1 + _TARGET_EPS).sqrt()
