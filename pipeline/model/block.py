"""Encoder blocks: the paper's, and its axial one (D.6).

B batch, N tokens, D width, R residual branches of the block.
"""

import torch
from torch import Tensor, nn

from pipeline.model.attention import Attention, RelativeAttention
from schemas.model import ViTSpec


class Block(nn.Module):
    """Pre-norm encoder block: attention, then a two-layer MLP, each with a residual."""

    BRANCHES = 2

    def __init__(self, spec: ViTSpec, *, patches: int) -> None:
        """A block over sequences of the leading tokens and `patches`."""
        super().__init__()
        width, eps = spec.width, spec.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = _attention(spec, patches)
        self.scale1 = nn.Parameter(torch.empty(width)) if spec.layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.dense1 = nn.Linear(width, spec.mlp_dim)
        self.gelu = nn.GELU(approximate="tanh" if spec.gelu == "tanh" else "none")
        self.dense2 = nn.Linear(spec.mlp_dim, width)
        self.scale2 = nn.Parameter(torch.empty(width)) if spec.layer_scale else None
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, tokens_BND: Tensor, keep_BR: Tensor | None = None) -> Tensor:
        """One step of the encoder: [B, N, D] -> [B, N, D].

        Args:
            tokens_BND: Leading tokens first.
            keep_BR: Factor of each branch; None: all 1.
        """
        attended_BND = self.dropout(self.attention(self.norm1(tokens_BND)))
        tokens_BND = tokens_BND + _branch(attended_BND, self.scale1, keep_BR, 0)
        hidden = self.dropout(self.gelu(self.dense1(self.norm2(tokens_BND))))
        return tokens_BND + _branch(self.dropout(self.dense2(hidden)), self.scale2, keep_BR, 1)


class AxialBlock(nn.Module):
    """A block along each row of patches, then one along each column."""

    BRANCHES = 4

    def __init__(self, spec: ViTSpec) -> None:
        """Two blocks for the grid of `spec`, which has no leading tokens."""
        super().__init__()
        self.grid = spec.grid
        self.rows = Block(spec, patches=self.grid[1])
        self.columns = Block(spec, patches=self.grid[0])

    def forward(self, tokens_BND: Tensor, keep_BR: Tensor | None = None) -> Tensor:
        """Both steps: [B, N, D] -> [B, N, D]; `keep_BR` holds the rows' branches first."""
        tokens_BYXD = tokens_BND.view(tokens_BND.shape[0], *self.grid, -1)
        tokens_BYXD = _along_rows(self.rows, tokens_BYXD, keep_BR, first=0)
        tokens_BXYD = _along_rows(self.columns, tokens_BYXD.transpose(1, 2), keep_BR, first=2)
        return tokens_BXYD.transpose(1, 2).reshape(tokens_BND.shape)


def _attention(spec: ViTSpec, patches: int) -> Attention:
    eps = spec.layer_norm_eps if spec.qk_norm else None
    if spec.position == "relative":
        return RelativeAttention(
            spec.width, spec.num_heads, patches=patches, leading=spec.leading, qk_norm_eps=eps
        )
    return Attention(spec.width, spec.num_heads, qk_norm_eps=eps)


def _branch(
    branch_BND: Tensor, scale_D: Tensor | None, keep_BR: Tensor | None, index: int
) -> Tensor:
    if scale_D is not None:
        branch_BND = branch_BND * scale_D
    if keep_BR is not None:
        branch_BND = branch_BND * keep_BR[:, index, None, None].to(branch_BND.dtype)
    return branch_BND


def _along_rows(block: Block, tokens_BYXD: Tensor, keep_BR: Tensor | None, *, first: int) -> Tensor:
    """A block whose sequences are rows; its branches begin at `first`."""
    keep = None
    if keep_BR is not None:
        keep = keep_BR[:, first : first + 2].repeat_interleave(tokens_BYXD.shape[1], dim=0)
    mixed: Tensor = block(tokens_BYXD.flatten(0, 1), keep)
    return mixed.view(tokens_BYXD.shape)
