"""Transformer encoder over texts."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.base import TokenBackbone, TokenEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import Pooling, inside, pooling
from models.parts.schedules import Cosine
from models.parts.texts import passes, token_embedding
from models.parts.transformer import TransformerLayer, sinusoids


class Transformer(TokenEncoder):
    """Self-attention layers over tokens and their positions (Vaswani et al., 2017)."""

    name: Literal["transformer"] = "transformer"
    width: int = Field(
        128, ge=2, le=4096, description="Width of the states; a multiple of `heads`."
    )
    layers: int = Field(2, ge=1, le=48, description="Transformer layers on top of each other.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads of each layer.")
    feedforward: int = Field(
        512, ge=1, le=16_384, description="Width of the hidden layer of the feed-forward networks."
    )
    positions: Literal["learned", "sinusoid"] = Field(
        "learned", description="How tokens are told their places."
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Share of states and attention dropped in training."
    )
    pooling: Pooling = Field("mean", description="How the states of a text become one vector.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def build(self, vocabulary: int, max_length: int) -> TokenBackbone:
        return TransformerBackbone(vocabulary, max_length, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {
            "epochs": passes(examples),
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
        }


class Embeddings(nn.Module):
    """Token embeddings and their positions."""

    def __init__(self, vocabulary: int, max_length: int, options: Transformer) -> None:
        super().__init__()
        self.tokens = token_embedding(vocabulary, options.width)
        self.places: Tensor
        if options.positions == "learned":
            places = 0.02 * torch.randn(max_length, options.width)
            self.register_parameter("places", nn.Parameter(places))
        else:
            self.register_buffer("places", sinusoids(max_length, options.width), persistent=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to (B, T, width)."""
        embedded: Tensor = self.dropout(self.tokens(tokens) + self.places[: tokens.shape[1]])
        return embedded


class TransformerBackbone(TokenBackbone):
    """Embeddings, transformer layers, and a pooling of their states."""

    def __init__(self, vocabulary: int, max_length: int, options: Transformer) -> None:
        super().__init__()
        width = options.width
        self.embeddings = Embeddings(vocabulary, max_length, options)
        self.layers = nn.ModuleList(
            TransformerLayer(width, options.heads, options.feedforward, options.dropout)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.pool = pooling(options.pooling, width)
        self.width = width

    def blocks(self) -> list[nn.Module]:
        return [self.embeddings, *self.layers, nn.ModuleList([self.norm, self.pool])]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        mask = inside(tokens, lengths)[:, None, None]
        states = self.embeddings(tokens)
        for layer in self.layers:
            states = layer(states, mask)
        normed: Tensor = self.norm(states)
        return normed

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.states(tokens, lengths), lengths)
        return pooled
