"""Which patches are salient: the attention that the class token pays in a ViT's last block.

Axes: B batch, A heads, T tokens, N patches, H W pixels, C channels.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.model.attention import Attention
from pipeline.model.backbone import Backbone, normalise
from pipeline.model.vit import ViT
from schemas.backbones import BackboneSpec
from schemas.errors import DataError
from schemas.model import ViTSpec


def guiding(stage: str, model: Backbone, head: int | None) -> ViT:
    """The model, if it can say what is salient.

    Raises:
        DataError: If it has no class token that attends to all patches, or no such head.
    """
    if not isinstance(model, ViT) or not can_guide(model.spec):
        raise DataError(
            f"{stage} has no attention of a class token, so it cannot say which patches are "
            "salient",
            hint="name a ViT with pool cls as guide, or leave salient and non_salient out of "
            "patch_drop.orders",
        )
    if head is not None and head >= model.spec.num_heads:
        raise DataError(
            f"patch_drop.head is {head}, but {stage} has heads 0 to {model.spec.num_heads - 1}"
        )
    return model


def can_guide(spec: BackboneSpec) -> bool:
    """Whether models of this kind have a class token that attends to every patch."""
    return isinstance(spec, ViTSpec) and spec.pool == "cls"


@torch.no_grad()
def attention_shares(
    model: ViT, pixels_BHWC: UInt8[np.ndarray, "B H W C"], head: int | None
) -> Float[np.ndarray, "B N"]:
    """How much of the class token's last attention each patch gets; rows sum to 1.

    Images of another size than the model's are resized to it for this (bilinear, antialiased).

    Args:
        model: See `guiding`.
        pixels_BHWC: The images whole.
        head: Of the last block; None: the mean of all.
    """
    device = next(model.parameters()).device
    pixels_BCHW = normalise(torch.from_numpy(pixels_BHWC).to(device), model.spec)
    if pixels_BCHW.shape[2:] != model.spec.image_px:
        size = list(model.spec.image_px)
        pixels_BCHW = F.interpolate(pixels_BCHW, size, mode="bilinear", antialias=True)
    weights_BAT = _last_attention(model, pixels_BCHW)[:, :, 0].double()
    paid_BT = weights_BAT.mean(dim=1) if head is None else weights_BAT[:, head]
    paid_BN = paid_BT[:, model.spec.leading :]
    shares_BN: np.ndarray = (paid_BN / paid_BN.sum(dim=1, keepdim=True)).cpu().numpy()
    return shares_BN


def drop_by_mass(
    share_BN: Float[np.ndarray, "B N"], percent: int, *, salient: bool
) -> Bool[np.ndarray, "B N"]:
    """Which patches go, by the attention that they hold.

    Salient: the fewest patches, most attended first, that hold at least `percent` of it. Otherwise:
    the most patches, least attended first, that hold no more than `percent` of it. Ties are broken
    by reading order.
    """
    order_BN = np.argsort(-share_BN if salient else share_BN, axis=1, kind="stable")
    sorted_BN = np.take_along_axis(share_BN, order_BN, axis=1)
    upto_BN = np.cumsum(sorted_BN, axis=1)
    chosen_BN = (upto_BN - sorted_BN < percent / 100) if salient else (upto_BN <= percent / 100)
    dropped_BN = np.zeros_like(chosen_BN)
    np.put_along_axis(dropped_BN, order_BN, chosen_BN, axis=1)
    return dropped_BN


def _last_attention(model: ViT, pixels_BCHW: Tensor) -> Tensor:
    """Weights of the last block's attention, [B, A, T, T]."""
    seen: list[Tensor] = []

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)  # noqa: S101 - blocks hold no other
        seen.append(module.weights(arguments[0]))

    last = model.get_submodule(f"blocks.{model.spec.depth - 1}.attention")
    hook = last.register_forward_pre_hook(look)
    try:
        model.forward_tokens(pixels_BCHW)
    finally:
        hook.remove()
    return seen[0]
