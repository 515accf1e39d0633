"""Masked autoencoder (He et al. 2021): an encoder of the patches that are seen, a decoder of all.

B batch, N patches, M patches that are seen, V numbers in a patch, D width of the encoder, W width
of the decoder, S leading tokens, T S + M tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.model.block import Block
from pipeline.model.masked import with_initial_weights
from pipeline.model.noise import ForwardNoise
from pipeline.model.positions import waves
from pipeline.model.vit import Encoder
from schemas.model import ViTSpec


class MaskedAutoencoder(Encoder):
    """An encoder that sees some patches, and a decoder that draws them all."""

    def __init__(self, spec: ViTSpec, decoder: ViTSpec) -> None:
        """Parts with empty weights."""
        super().__init__(spec)
        self.decoder = Decoder(decoder, width_in=spec.width)

    def forward(self, pixels_BCHW: Tensor, noise: ForwardNoise) -> Tensor:
        """Normalised pixels [B, C, H, W] -> what every patch is thought to be, [B, N, V].

        Args:
            pixels_BCHW: Of the size that the spec says.
            noise: Its `kept_patches_BM` are what is seen.
        """
        assert noise.kept_patches_BM is not None, "the objective draws them"  # noqa: S101
        tokens_BTD = self.norm(self.encode(self.embed(pixels_BCHW), noise))
        drawn_BNV: Tensor = self.decoder(tokens_BTD, noise.kept_patches_BM)
        return drawn_BNV


class Decoder(nn.Module):
    """Tokens of the patches that are seen -> pixels of all, in the order of `patchify`."""

    def __init__(self, spec: ViTSpec, *, width_in: int) -> None:
        """Parts with empty weights; blocks, grid and leading tokens are those of `spec`."""
        super().__init__()
        self.spec = spec
        self.embed = nn.Linear(width_in, spec.width)
        self.mask_token = nn.Parameter(torch.empty(spec.width))
        self.position: Tensor
        self.register_buffer("position", _positions(spec), persistent=False)
        self.blocks = nn.ModuleList(Block(spec, patches=spec.patches) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, eps=spec.layer_norm_eps)
        self.pixels = nn.Linear(spec.width, spec.patch_values)

    def forward(self, tokens_BTD: Tensor, kept_BM: Tensor) -> Tensor:
        """[B, S + M, D] and the places of the M patches, [B, M] -> pixels [B, N, V]."""
        leading, (batch, width) = self.spec.leading, (len(tokens_BTD), self.spec.width)
        tokens_BTW = self.embed(tokens_BTD)
        hidden_BNW = self.mask_token.to(tokens_BTW.dtype).expand(batch, self.spec.patches, width)
        index_BMW = kept_BM[:, :, None].expand(-1, -1, width)
        patches_BNW = hidden_BNW.scatter(1, index_BMW, tokens_BTW[:, leading:])
        tokens_BTW = torch.cat([tokens_BTW[:, :leading], patches_BNW], dim=1) + self.position
        for block in self.blocks:
            tokens_BTW = block(tokens_BTW)
        drawn_BNV: Tensor = self.pixels(self.norm(tokens_BTW)[:, leading:])
        return drawn_BNV


def _positions(spec: ViTSpec) -> Tensor:
    """MAE's fixed table [S + N, W]: frequencies w^(-4 i / W), zero for leading tokens."""
    steps = spec.width // 4
    table_NW = waves(spec.grid, torch.arange(steps, dtype=torch.float64, device="cpu") / steps)
    return F.pad(table_NW, (0, 0, spec.leading, 0)).to(torch.float32)


def build_mae(spec: ViTSpec, decoder: ViTSpec, *, seed: int) -> MaskedAutoencoder:
    """The model for MAE; its encoder begins as `vit.build` begins it."""
    with torch.device("meta"):
        model = MaskedAutoencoder(spec, decoder)
    return with_initial_weights(model, seed=seed)
