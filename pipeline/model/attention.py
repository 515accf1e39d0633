"""Multi-head attention: of tokens among themselves, and of a learned query over tokens.

B batch, N tokens, D width, A heads, E width of a head, M tokens that ask.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows


class Attention(nn.Module):
    """Scaled dot-product attention; query, key and value are separate, each with its own init."""

    def __init__(self, width: int, num_heads: int, *, qk_norm_eps: float | None = None) -> None:
        """Layers of `width`.

        Args:
            width: Of tokens in and out.
            num_heads: Equal parts of the width.
            qk_norm_eps: Of a LayerNorm over the queries and keys of each head; None: no norms.
        """
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.query_norm, self.key_norm = (
            None if qk_norm_eps is None else nn.LayerNorm(width // num_heads, eps=qk_norm_eps)
            for _ in range(2)
        )

    def forward(self, tokens_BND: Tensor, asking_BMD: Tensor | None = None) -> Tensor:
        """Mix tokens: [B, N, D] -> [B, M, D], M = N and each token asks unless others are given."""
        asking_BMD = tokens_BND if asking_BMD is None else asking_BMD
        query_BAME, key_BANE = self._query(asking_BMD), self._key(tokens_BND)
        value_BANE = self._split(self.value(tokens_BND))
        mixed_BAME = F.scaled_dot_product_attention(
            query_BAME, key_BANE, value_BANE, attn_mask=self.bias(query_BAME)
        )
        mixed_BMD: Tensor = self.out(mixed_BAME.transpose(1, 2).reshape(asking_BMD.shape))
        return mixed_BMD

    def weights(self, tokens_BND: Tensor, asking_BMD: Tensor | None = None) -> Tensor:
        """How much each token that asks attends to each: [B, A, M, N], rows sum to 1."""
        query_BAME = self._query(tokens_BND if asking_BMD is None else asking_BMD)
        key_BANE = self._key(tokens_BND)
        scores_BAMN = query_BAME @ key_BANE.transpose(2, 3) / math.sqrt(query_BAME.shape[-1])
        bias_BAMN = self.bias(query_BAME)
        return (scores_BAMN if bias_BAMN is None else scores_BAMN + bias_BAMN).softmax(dim=-1)

    def bias(self, query_BANE: Tensor) -> Tensor | None:  # noqa: ARG002 - for subclasses
        """What is added to the scores."""
        return None

    def _query(self, tokens_BND: Tensor) -> Tensor:
        query_BANE = self._split(self.query(tokens_BND))
        return query_BANE if self.query_norm is None else self.query_norm(query_BANE)

    def _key(self, tokens_BND: Tensor) -> Tensor:
        key_BANE = self._split(self.key(tokens_BND))
        return key_BANE if self.key_norm is None else self.key_norm(key_BANE)

    def _split(self, tokens_BND: Tensor) -> Tensor:
        batch, tokens, _ = tokens_BND.shape
        return tokens_BND.view(batch, tokens, self.num_heads, -1).transpose(1, 2)


class RelativeAttention(Attention):
    """Attention that also scores distances (paper, D.4): each has a key of its own in each head.

    The distance of two patches is that of their places in reading order. Leading tokens have no
    place: scores with them get no bias.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        patches: int,
        leading: int,
        qk_norm_eps: float | None = None,
    ) -> None:
        """As `Attention`, for `leading` tokens and then `patches`."""
        super().__init__(width, num_heads, qk_norm_eps=qk_norm_eps)
        self.patches, self.leading = patches, leading
        self.relative = nn.Parameter(torch.empty(num_heads, 2 * patches - 1, width // num_heads))

    def bias(self, query_BANE: Tensor) -> Tensor:
        """[B, A, N, N]: query q times the key of distance k - q, row k - q + patches - 1."""
        count, query = self.patches, query_BANE[:, :, self.leading :]
        by_distance = query @ self.relative.transpose(1, 2) / math.sqrt(query.shape[-1])
        # Row q begins at distance -q: with one number of padding a row, that is a plain view.
        flat = F.pad(by_distance, (0, 1)).flatten(2)[..., count - 1 : -1]
        rows = flat.reshape(*flat.shape[:2], count, 2 * count - 1)
        return F.pad(rows[..., :count], (self.leading, 0, self.leading, 0))
