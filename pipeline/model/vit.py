"""The Vision Transformer of Dosovitskiy et al. (2020), one sitting to read.

Axes in names: B batch, C channels, H W pixels, N tokens, D width, A heads, E width of a head,
K classes. Nothing here knows of training, files or devices.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from schemas.model import ViTSpec

CHANNELS = 3
KEY_BIAS = ".attention.key.bias"
"""How the names of key biases end: their true gradient is zero, so comparisons leave them out."""


def normalise(pixels_BHWC: Tensor, spec: ViTSpec) -> Tensor:
    """Bytes 0..255 in [B, H, W, C] -> float32 [B, C, H, W], zero mean and unit spread by `spec`."""
    scale = 1.0 / (255.0 * spec.pixel_std)
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32)
    return pixels_BCHW.mul_(scale).sub_(spec.pixel_mean / spec.pixel_std).contiguous()


def patchify(pixels_BCHW: Tensor, patch_px: int) -> Tensor:
    """Cut images into square patches, row by row: [B, C, H, W] -> [B, N, C * P * P].

    The order inside a patch is that of a convolution's weight, so both can be exchanged.

    Raises:
        ValueError: If `patch_px` does not divide both sides.
    """
    batch, channels, height, width = pixels_BCHW.shape
    if height % patch_px or width % patch_px:
        raise ValueError(f"patch_px {patch_px} must divide both sides of {height} x {width} px")
    rows, columns = height // patch_px, width // patch_px
    cells = pixels_BCHW.reshape(batch, channels, rows, patch_px, columns, patch_px)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class Attention(nn.Module):
    """Multi-head self-attention; query, key and value are separate, each with its own init."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Mix tokens: [B, N, D] -> [B, N, D]."""
        mixed_BANE = F.scaled_dot_product_attention(
            self._split(self.query(tokens_BND)),
            self._split(self.key(tokens_BND)),
            self._split(self.value(tokens_BND)),
        )
        mixed_BND: Tensor = self.out(mixed_BANE.transpose(1, 2).reshape(tokens_BND.shape))
        return mixed_BND

    def _split(self, tokens_BND: Tensor) -> Tensor:
        batch, tokens, _ = tokens_BND.shape
        return tokens_BND.view(batch, tokens, self.num_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm encoder block: attention, then a two-layer MLP, each with a residual."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.layer_norm_eps)
        self.attention = Attention(spec.width, spec.num_heads)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.layer_norm_eps)
        self.dense1 = nn.Linear(spec.width, spec.mlp_dim)
        self.gelu = nn.GELU(approximate="tanh" if spec.gelu == "tanh" else "none")
        self.dense2 = nn.Linear(spec.mlp_dim, spec.width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """One step of the encoder: [B, N, D] -> [B, N, D]."""
        tokens_BND = tokens_BND + self.attention(self.norm1(tokens_BND))
        hidden = self.gelu(self.dense1(self.norm2(tokens_BND)))
        out_BND: Tensor = tokens_BND + self.dense2(hidden)
        return out_BND


class ViT(nn.Module):
    """The model that `spec` describes; `build` gives it its initial weights."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        rows, columns = spec.grid
        has_class = spec.pool == "cls"
        self.patch = nn.Linear(CHANNELS * spec.patch_px**2, spec.width)
        self.class_token = nn.Parameter(torch.empty(spec.width)) if has_class else None
        self.position = nn.Parameter(torch.empty(rows * columns + has_class, spec.width))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, eps=spec.layer_norm_eps)
        self.head = nn.Linear(spec.width, spec.num_classes)

    def forward_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, C, H, W] -> one feature vector for each image, [B, D]."""
        tokens_BND: Tensor = self.patch(patchify(pixels_BCHW, self.spec.patch_px))
        if self.class_token is not None:
            class_B1D = self.class_token.expand(len(tokens_BND), 1, -1)
            tokens_BND = torch.cat([class_B1D.to(tokens_BND.dtype), tokens_BND], dim=1)
        tokens_BND = tokens_BND + self.position
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        tokens_BND = self.norm(tokens_BND)
        return tokens_BND.mean(dim=1) if self.class_token is None else tokens_BND[:, 0]

    def forward_head(self, features_BD: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K]."""
        logits_BK: Tensor = self.head(features_BD)
        return logits_BK

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, C, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(pixels_BCHW))


def build(spec: ViTSpec, *, seed: int) -> ViT:
    """A ViT on the CPU with the initial weights of the authors' code, fixed by (spec, seed).

    Xavier uniform for each dense kernel, with query, key and value on their own; truncated LeCun
    normal for the patch kernel; N(0, 0.02) for positions; zeros for class token, biases and head.
    """
    with torch.device("meta"):
        model = ViT(spec)  # no memory and no draw from the global generator
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, generator)
    return model


def _initialise(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """The initial value of one parameter; the order of the draws is that of the parameters."""
    if name == "position":
        nn.init.normal_(parameter, std=0.02, generator=generator)
    elif name == "patch.weight":
        # JAX's lecun_normal: cut at two deviations, then widened to unit variance again.
        std = math.sqrt(1.0 / parameter.shape[1]) / 0.87962566103423978
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    elif "norm" in name and name.endswith("weight"):
        nn.init.ones_(parameter)
    elif name == "class_token" or name.startswith("head.") or name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.xavier_uniform_(parameter, generator=generator)
