"""Attention pooling: one learned query looks at all tokens (big_vision's `map`)."""

import torch
from torch import Tensor, nn

from pipeline.model.attention import Attention
from schemas.model import ViTSpec


class AttentionPooling(nn.Module):
    """Attention of a learned query, then an MLP with a residual."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(spec.width))
        self.attention = Attention(spec.width, spec.num_heads)
        self.norm = nn.LayerNorm(spec.width, eps=spec.layer_norm_eps)
        self.dense1 = nn.Linear(spec.width, spec.mlp_dim)
        self.gelu = nn.GELU(approximate="tanh" if spec.gelu == "tanh" else "none")
        self.dense2 = nn.Linear(spec.mlp_dim, spec.width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """All tokens [B, N, D] -> one vector for each image [B, D]."""
        pooled_BD = self.attention(tokens_BND, self.asking(tokens_BND))[:, 0]
        out_BD: Tensor = pooled_BD + self.dense2(self.gelu(self.dense1(self.norm(pooled_BD))))
        return out_BD

    def asking(self, tokens_BND: Tensor) -> Tensor:
        """The learned query for each image of a batch, [B, 1, D]."""
        return self.probe.expand(tokens_BND.shape[0], 1, -1).to(tokens_BND.dtype)
