"""Transformer encoder over texts."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import CausalBackbone, CausalEncoder, SequenceEncoder, State
from models.parts.optimizers import AdamW
from models.parts.pooling import Pooling, inside, pooling
from models.parts.schedules import Cosine
from models.parts.texts import passes, token_embedding
from models.parts.transformer import TransformerLayer, sinusoids


class Transformer(CausalEncoder, SequenceEncoder):
    """Self-attention layers over tokens, or other steps, and their positions (Vaswani et al., 2017)."""

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
    causal: bool = Field(
        False, description="Let tokens look only at themselves and those before them."
    )
    pooling: Pooling = Field("mean", description="How the states of a text become one vector.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def build(self, vocabulary: int, max_length: int) -> CausalBackbone:
        return TransformerBackbone(token_embedding(vocabulary, self.width), max_length, self)

    def over_vectors(self, features: int, max_length: int) -> CausalBackbone:
        return TransformerBackbone(nn.Linear(features, self.width), max_length, self)

    def one_way(self) -> Self:
        return self.model_copy(update={"causal": True, "pooling": "mean"})

    def defaults(self, examples: int) -> dict[str, Any]:
        return {
            "epochs": passes(examples),
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
        }


class Embeddings(nn.Module):
    """Token embeddings and their positions."""

    def __init__(self, tokens: nn.Module, max_length: int, options: Transformer) -> None:
        super().__init__()
        self.tokens = tokens
        self.places: Tensor
        if options.positions == "learned":
            places = 0.02 * torch.randn(max_length, options.width)
            self.register_parameter("places", nn.Parameter(places))
        else:
            self.register_buffer("places", sinusoids(max_length, options.width), persistent=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens (B, T), at `places` (B, T) unless they are the first ones, to (B, T, width)."""
        at = self.places[: tokens.shape[1]] if places is None else self.places[places]
        embedded: Tensor = self.dropout(self.tokens(tokens) + at)
        return embedded


class TransformerBackbone(CausalBackbone):
    """Embeddings, transformer layers, and a pooling of their states."""

    def __init__(self, tokens: nn.Module, max_length: int, options: Transformer) -> None:
        super().__init__()
        width = options.width
        self.embeddings = Embeddings(tokens, max_length, options)
        self.layers = nn.ModuleList(
            TransformerLayer(width, options.heads, options.feedforward, options.dropout)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.pool = pooling(options.pooling, width)
        self.width, self.causal, self.most = width, options.causal, max_length
        self._of_heads = 2, options.heads, 0, width // options.heads

    def blocks(self) -> list[nn.Module]:
        return [self.embeddings, *self.layers, nn.ModuleList([self.norm, self.pool])]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # Padding stands behind every token, so that what looks only back never sees any.
        mask = None if self.causal else inside(tokens, lengths)[:, None, None]
        states = self.embeddings(tokens)
        for layer in self.layers:
            states = layer(states, mask, self.causal)
        normed: Tensor = self.norm(states)
        return normed

    def read_on(
        self, tokens: Tensor, lengths: Tensor, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """See `CausalBackbone`. The memory holds how much was read, and keys and values of each layer."""
        read, *kept = memory or self._nothing_read(tokens)
        places = read[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        room, needed = kept[0].shape[3], int(places.max()) + 1
        if needed > room:  # twice as much, so that it is rarely copied
            more = (0, 0, 0, max(needed, 2 * room) - room)
            kept = [F.pad(part, more) for part in kept]
        states = self.embeddings(tokens, places.clamp(max=self.most - 1))
        for layer, part in zip(self.layers, kept, strict=True):
            assert isinstance(layer, TransformerLayer)
            states = layer.read_on(states, places, part)
        # What padding wrote is overwritten by the tokens that come in its places before any looks there.
        return self.norm(states), (read + lengths, *kept)

    def _nothing_read(self, tokens: Tensor) -> State:
        empty = self.norm.weight.new_zeros(len(tokens), *self._of_heads)
        return tokens.new_zeros(len(tokens)), *[empty] * len(self.layers)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.states(tokens, lengths), lengths)
        return pooled
