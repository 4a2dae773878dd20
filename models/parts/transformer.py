"""Transformer layers and what tells them of positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Every place looks at every other (Vaswani et al., 2017)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """States (B, T, D) to (B, T, D); `mask`, which broadcasts to (B, heads, T, T), is true where one may look."""
        heads = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)  # each (B, heads, T, D / heads)
        found = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        merged: Tensor = self.merge(found.transpose(1, 2).flatten(2))
        return merged


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm (Xiong et al., 2020)."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """States (B, T, D) to (B, T, D); see `SelfAttention` for the mask."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, causal))
        y: Tensor = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return y


def sinusoids(length: int, width: int) -> Tensor:
    """Positions as sines and cosines of many wavelengths: (length, width) (Vaswani et al., 2017)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
