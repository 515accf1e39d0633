"""Where a model looks: the attention of every block, for pictures of it.

B batch, A heads, T tokens.
"""

import torch
from torch import Tensor, nn

from pipeline.model.attention import Attention
from pipeline.model.vit import ViT
from schemas.errors import SpecError


@torch.no_grad()
def attention_maps(model: ViT, pixels_BCHW: Tensor) -> list[Tensor]:
    """The weights of each block's attention, [B, A, T, T]: row q is what token q takes from each.

    They are computed a second time, with an explicit softmax; leading tokens come first, as in
    `ViT.forward_tokens`.

    Raises:
        SpecError: If blocks are axial: no token of theirs sees the whole image.
    """
    if model.spec.axial:
        raise SpecError("axial blocks have no attention over the whole image to show")
    maps: list[Tensor] = []

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)  # noqa: S101 - blocks hold no other
        maps.append(module.weights(arguments[0]))

    blocks = [block for block in model.blocks if isinstance(block, nn.Module)]
    hooks = [block.get_submodule("attention").register_forward_pre_hook(look) for block in blocks]
    try:
        model.hidden_states(pixels_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
