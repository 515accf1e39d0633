"""What chance decides in a forward pass, given by the caller: skipped branches, patches that stay.

B batch, L residual branches, N patches, M patches that stay.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from schemas.model import ViTSpec


@dataclass(frozen=True)
class ForwardNoise:
    """One pass's chances; None leaves that part out, so that the pass is deterministic."""

    keep_path_BL: Float[Tensor, "B L"] | None = None
    """Factor of each residual branch: 0, or 1 / (1 - its rate). Branches are in the order in which
    they run: attention, then MLP, of each block."""
    kept_patches_BM: Int[Tensor, "B M"] | None = None
    """Indices of the patches that stay, in reading order of the grid; int64."""

    def to(self, device: torch.device) -> "ForwardNoise":
        """The same chances on a device."""
        parts = self.keep_path_BL, self.kept_patches_BM
        return ForwardNoise(*(None if part is None else part.to(device) for part in parts))


def branches(spec: ViTSpec) -> int:
    """Residual branches of the whole model: two for each block, four for an axial one."""
    return spec.depth * (4 if spec.axial else 2)


def path_rates(spec: ViTSpec) -> list[float]:
    """Share of samples that skip each branch: from 0 in the first block to `drop_path` in the last.

    All branches of a block have its rate.
    """
    in_block = branches(spec) // spec.depth
    last = max(1, spec.depth - 1)
    return [spec.drop_path * block / last for block in range(spec.depth) for _ in range(in_block)]


def lowest(number_BN: Float[Tensor, "B N"], count: int) -> Int[Tensor, "B M"]:
    """Places of the `count` smallest numbers of each row, ascending."""
    order_BN = torch.argsort(number_BN, dim=1, stable=True)
    return order_BN[:, :count].sort(dim=1).values


def training_noise(
    spec: ViTSpec, path_BL: Float[Tensor, "B L"], patch_BN: Float[Tensor, "B N"]
) -> ForwardNoise:
    """The noise of one training pass, a function of numbers that the caller drew.

    Args:
        spec: Its `drop_path` and `patch_dropout` decide.
        path_BL: Even on [0, 1): a branch is skipped where its number is below its rate.
        patch_BN: Any distinct numbers: the patches with the smallest stay.
    """
    keep_path_BL = kept_patches_BM = None
    if spec.drop_path:
        rate_L = torch.tensor(path_rates(spec), device=path_BL.device)
        keep_path_BL = (path_BL >= rate_L) / (1.0 - rate_L)
    if spec.patch_dropout:
        kept_patches_BM = lowest(patch_BN, spec.kept_patches)
    return ForwardNoise(keep_path_BL, kept_patches_BM)
