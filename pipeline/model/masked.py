"""Masked patch prediction: an encoder that sees corrupted patches, and what it says of them.

B batch, N patches, D width, T all tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pipeline.model.initial import initial_weights
from pipeline.model.noise import ForwardNoise
from pipeline.model.vit import Encoder
from schemas.model import ViTSpec
from schemas.objectives import COLOUR_LEVELS

M = TypeVar("M", bound=Encoder)
_BESIDES = ("mask_token", "colours.", "decoder.")
"""How the names of parameters begin that serve an objective alone."""


@dataclass(frozen=True)
class Corruption:
    """What stands where, instead of the embedded patches."""

    source_BN: Int[Tensor, "B N"]
    """The patch that each place shows: mostly its own; int64."""
    masked_BN: Bool[Tensor, "B N"]
    """Where the learned token stands instead."""


class MaskedPatchModel(Encoder):
    """An encoder with a token for hidden patches, and one dense layer that names colours."""

    def __init__(self, spec: ViTSpec) -> None:
        """Parts with empty weights."""
        super().__init__(spec)
        self.mask_token = nn.Parameter(torch.empty(spec.width))
        self.colours = nn.Linear(spec.width, COLOUR_LEVELS**3)

    def forward(
        self, pixels_BCHW: Tensor, corruption: Corruption, noise: ForwardNoise | None = None
    ) -> Tensor:
        """Normalised pixels [B, C, H, W] -> logits of every patch's colour, [B, N, 512]."""
        patches_BND = self.embed(pixels_BCHW)
        index_BND = corruption.source_BN[:, :, None].expand(patches_BND.shape)
        token_D = self.mask_token.to(patches_BND.dtype)
        shown_BND = patches_BND.gather(1, index_BND)
        shown_BND = torch.where(corruption.masked_BN[:, :, None], token_D, shown_BND)
        tokens_BTD = self.norm(self.encode(shown_BND, noise))
        logits_BNK: Tensor = self.colours(tokens_BTD[:, self.spec.leading :])
        return logits_BNK


def build_masked(spec: ViTSpec, *, seed: int) -> MaskedPatchModel:
    """The model for masked patch prediction; its encoder begins as `vit.build` begins it."""
    with torch.device("meta"):
        model = MaskedPatchModel(spec)
    return with_initial_weights(model, seed=seed)


def with_initial_weights(model: M, *, seed: int) -> M:
    """Fill a model on the meta device: first the encoder, then what an objective adds to it."""
    named = sorted(model.named_parameters(), key=lambda pair: pair[0].startswith(_BESIDES))
    weights = initial_weights(model.spec, named, seed=seed)
    model.load_state_dict(weights, assign=True)
    return model


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those that serve an objective alone."""
    return {name: it for name, it in weights.items() if not name.startswith(_BESIDES)}
