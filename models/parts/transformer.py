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
        queries, keys, values = self._heads(x).unbind(0)
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

    def read_on(self, x: Tensor, places: Tensor, kept: Tensor) -> Tensor:
        """The next states (B, S, D) of texts, at their `places` (B, S), to (B, S, D).

        `kept` are the keys and values (B, 2, heads, C, D / heads) of all places below C; those of `places`
        are written into it. Each place looks at those up to its own.
        """
        queries, *new = self._heads(x).unbind(0)
        added = torch.stack(new, 1)
        kept.scatter_(3, places[:, None, None, :, None].expand_as(added), added.to(kept.dtype))
        keys, values = kept.to(queries.dtype).unbind(1)
        mask = torch.arange(keys.shape[2], device=x.device) <= places[:, None, :, None]
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        merged: Tensor = self.merge(found.transpose(1, 2).flatten(2))
        return merged

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (3, B, heads, T, D / heads)."""
        heads: Tensor = self.project(x).unflatten(-1, (3, self.heads, -1))
        return heads.permute(2, 0, 3, 1, 4)


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
        return self._feed(x)

    def read_on(self, x: Tensor, places: Tensor, kept: Tensor) -> Tensor:
        """States (B, S, D) to (B, S, D), when not training; see `SelfAttention`."""
        return self._feed(x + self.attention.read_on(self.attention_norm(x), places, kept))

    def _feed(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return y


def sinusoids(length: int, width: int) -> Tensor:
    """Positions as sines and cosines of many wavelengths: (length, width) (Vaswani et al., 2017)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
