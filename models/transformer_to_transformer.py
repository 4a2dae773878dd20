"""Transformer encoder-decoder."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import State
from models.parts.optimizers import AdamW
from models.parts.pooling import inside
from models.parts.schedules import Cosine
from models.parts.texts import token_embedding, writing_passes
from models.parts.transformer import TransformerLayer, sinusoids
from models.parts.writing import SequenceToSequence, WritingBackbone


class TransformerToTransformer(SequenceToSequence):
    """Transformer layers that read, and others that write and look back (Vaswani et al., 2017)."""

    name: Literal["transformer-seq2seq"] = "transformer-seq2seq"
    width: int = Field(
        128, ge=2, le=4096, description="Width of the states; a multiple of `heads`."
    )
    layers: int = Field(2, ge=1, le=48, description="Layers that read, and as many that write.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads of each layer.")
    feedforward: int = Field(
        512, ge=1, le=16_384, description="Width of the hidden layer of the feed-forward networks."
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Share of states and attention dropped in training."
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def build(self, vocabulary: int) -> WritingBackbone:
        return TransformerWriter(vocabulary, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {
            "epochs": writing_passes(examples),
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
        }


class WritingLayer(nn.Module):
    """Attention to what is written, to the source, and a feed-forward network, each behind a norm."""

    def __init__(self, options: TransformerToTransformer) -> None:
        super().__init__()
        width, self.heads = options.width, options.heads
        self.own = TransformerLayer(width, self.heads, options.feedforward, options.dropout)
        self.norm = nn.LayerNorm(width)
        self.query, self.merge = nn.Linear(width, width), nn.Linear(width, width)
        self.looked_at = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(options.dropout)

    def remember(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, D / heads) of a source's states (B, S, D)."""
        keys, values = self._heads(self.looked_at(source), 2)
        return keys, values

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, there: Tensor, past: State = ()
    ) -> tuple[Tensor, Tensor, State]:
        """States (B, T, D) of what is written to (B, T, D), attention (B, T, S), and keys and values of all so far.

        `past` are those of what was written before; without, each place looks at those before it.
        """
        own = self.own.attention
        queries, own_keys, own_values = self._heads(own.project(self.own.attention_norm(x)), 3)
        if past:
            own_keys = torch.cat([past[0], own_keys], 2)
            own_values = torch.cat([past[1], own_values], 2)
        rate = own.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(
            queries, own_keys, own_values, dropout_p=rate, is_causal=not past
        )
        x = x + self.dropout(own.merge(found.transpose(1, 2).flatten(2)))
        (queries,) = self._heads(self.query(self.norm(x)), 1)
        scores = queries @ keys.mT / queries.shape[-1] ** 0.5
        attention = scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1)
        looked = self.merge((attention @ values).transpose(1, 2).flatten(2))
        x = x + self.dropout(looked)
        x = x + self.dropout(self.own.feedforward(self.own.feedforward_norm(x)))
        return x, attention.mean(1), (own_keys, own_values)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * D) to `parts` tensors (B, heads, T, D / heads)."""
        split = x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return tuple(split.unbind(0))


class TransformerWriter(WritingBackbone):
    """Embeddings and places, layers that read, layers that write."""

    def __init__(self, vocabulary: int, options: TransformerToTransformer) -> None:
        super().__init__()
        self.width, self.heads = options.width, options.heads
        self.embedding = token_embedding(vocabulary, self.width)
        self.readers = nn.ModuleList(
            TransformerLayer(self.width, options.heads, options.feedforward, options.dropout)
            for _ in range(options.layers)
        )
        self.read_norm, self.norm = nn.LayerNorm(self.width), nn.LayerNorm(self.width)
        self.writers = nn.ModuleList(WritingLayer(options) for _ in range(options.layers))
        self.dropout = nn.Dropout(options.dropout)

    def blocks(self) -> list[nn.Module]:
        norms = nn.ModuleList([self.read_norm, self.norm])
        return [self.embedding, *self.readers, norms, *self.writers]

    def _embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Tokens (B, T), the first at `start`, to (B, T, width)."""
        places = sinusoids(start + tokens.shape[1], self.width)[start:].to(tokens.device)
        embedded: Tensor = self.dropout(self.embedding(tokens) + 0.1 * places)
        return embedded

    def read(self, tokens: Tensor, lengths: Tensor) -> State:
        there = inside(tokens, lengths)
        states = self._embed(tokens)
        for layer in self.readers:
            states = layer(states, there[:, None, None])
        states = self.read_norm(states)
        return there, *(part for layer in self._writers() for part in layer.remember(states))

    def _writers(self) -> list[WritingLayer]:
        return [layer for layer in self.writers if isinstance(layer, WritingLayer)]

    def begin(self, memory: State) -> State:
        nothing = memory[1][:, :, :0]
        return (nothing,) * (2 * len(self.writers))

    def write(self, written: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        states, attention, _ = self._go_on(self._embed(written), memory)
        return states, attention

    def step(self, written: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        embedded = self._embed(written[:, None], state[0].shape[2])
        states, attention, state = self._go_on(embedded, memory, state)
        return states[:, 0], attention[:, 0], state

    def _go_on(self, x: Tensor, memory: State, state: State = ()) -> tuple[Tensor, Tensor, State]:
        there, *source = memory
        known: list[Tensor] = []
        for place, layer in enumerate(self.writers):
            pair = slice(2 * place, 2 * place + 2)
            x, attention, written = layer(x, *source[pair], there, state[pair])
            known += written
        return self.norm(x), attention, tuple(known)
