"""Recurrent networks over texts: what LSTM, GRU and plain RNN share."""

from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.base import CausalBackbone, CausalEncoder, SequenceEncoder, State
from models.parts.optimizers import AdamW
from models.parts.pooling import Pooling, pooling
from models.parts.texts import passes, token_embedding


class Recurrent(nn.Module):
    """One layer over ragged sequences, forwards or both ways (Schuster and Paliwal, 1997).

    Sequences stay padded: with batches of similar lengths this is as fast as packing on the CPU
    (measured), and needs no copy of the lengths back from the GPU.
    """

    def __init__(self, forwards: nn.RNNBase, backwards: nn.RNNBase | None = None) -> None:
        super().__init__()
        self.forwards, self.backwards = forwards, backwards

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, D) and lengths (B,) to states (B, T, width)."""
        states = read(self.forwards, x)
        if self.backwards is None:
            return states
        back = reverse(read(self.backwards, reverse(x, lengths)), lengths)
        return torch.cat([states, back], -1)


def read(cells: nn.RNNBase, x: Tensor) -> Tensor:
    """Sequences (B, T, D) to states (B, T, width)."""
    states: Tensor
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Many processors have no LSTM in half the bits.
        with torch.autocast("cpu", enabled=False):
            states = cells(x.float())[0]
    else:
        states = cells(x)[0]
    return states


def read_on(
    cells: nn.RNNBase, x: Tensor, lengths: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sequences (B, T, D), of these `lengths` (B,), to states (B, T, width), and what cells hold at last.

    That is (B, n, width); `before` is what they held at first, if they have read anything.
    """
    has_gates = isinstance(cells, nn.LSTM)  # whose cells hold two vectors, other ones their state
    given = None if before is None else [p[None].contiguous() for p in before.unbind(1)]
    with torch.autocast(x.device.type, enabled=False):  # see `read`
        packed = pack_padded_sequence(
            x.float(), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, after = cells(packed, given and (tuple(given) if has_gates else given[0]))
    padded, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
    return padded, torch.cat(after if has_gates else (after,)).transpose(0, 1)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence of (B, T, D) back to front; padding stays behind it."""
    steps = x.shape[1]
    places = (lengths[:, None] - 1 - torch.arange(steps, device=x.device)) % steps
    return x.gather(1, places[..., None].expand_as(x))


class LastState(nn.Module):
    """What each direction knows when it has read the whole text."""

    def __init__(self, forwards: int) -> None:
        super().__init__()
        self.forwards = forwards

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States (B, T, D), the first `forwards` of each read forwards, and lengths (B,) to (B, D)."""
        texts = torch.arange(len(states), device=states.device)
        ends = states[texts, lengths - 1, : self.forwards]
        return torch.cat([ends, states[:, 0, self.forwards :]], -1)


class RecurrentBackbone(CausalBackbone):
    """An embedding of each step, recurrent layers, and a pooling of their states."""

    def __init__(
        self,
        embedding: nn.Module,
        layers: list[Recurrent],
        pool: nn.Module,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def blocks(self) -> list[nn.Module]:
        return [self.embedding, *self.layers, self.pool]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            states = self.dropout(layer(states, lengths))
        return states

    def read_on(
        self, tokens: Tensor, lengths: Tensor, memory: State | None = None
    ) -> tuple[Tensor, State]:
        states, after = self.dropout(self.embedding(tokens)), []
        for place, layer in enumerate(self.layers):
            before = None if memory is None else memory[place]
            assert isinstance(layer, Recurrent)
            states, held = read_on(layer.forwards, states, lengths, before)
            states = self.dropout(states)
            after.append(held)
        return states, tuple(after)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.states(tokens, lengths), lengths)
        return pooled


class RecurrentEncoder(CausalEncoder, SequenceEncoder):
    """The hyperparameters of a recurrent network over texts and other sequences."""

    graph = "fixed"

    embedding: int = Field(
        128, ge=1, le=4096, description="Width of the embeddings of single steps."
    )
    width: int = Field(
        128,
        ge=2,
        le=4096,
        multiple_of=2,
        description="Width of the states, both directions together.",
    )
    layers: int = Field(1, ge=1, le=16, description="Recurrent layers on top of each other.")
    bidirectional: bool = Field(True, description="Read each text in both directions.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of embeddings and states dropped in training."
    )
    pooling: Pooling | Literal["last"] = Field(
        "max", description="How the states of a text become one vector."
    )

    @abstractmethod
    def cell(self, inputs: int, width: int) -> nn.RNNBase:
        """One layer in one direction: (B, T, inputs) to (B, T, width)."""

    def build(self, vocabulary: int, max_length: int) -> RecurrentBackbone:
        return self._backbone(token_embedding(vocabulary, self.embedding))

    def over_vectors(self, features: int, max_length: int) -> RecurrentBackbone:
        return self._backbone(nn.Linear(features, self.embedding))

    def _backbone(self, embedding: nn.Module) -> RecurrentBackbone:
        layers = [self.layer(self.embedding)]
        layers += [self.layer(self.width) for _ in range(self.layers - 1)]
        return RecurrentBackbone(embedding, layers, self._pool(), self.width, self.dropout)

    def one_way(self) -> Self:
        return self.model_copy(update={"bidirectional": False, "pooling": "max"})

    def layer(self, inputs: int) -> Recurrent:
        """One layer in as many directions as asked for."""
        if not self.bidirectional:
            return Recurrent(self.cell(inputs, self.width))
        return Recurrent(self.cell(inputs, self.width // 2), self.cell(inputs, self.width // 2))

    def _pool(self) -> nn.Module:
        if self.pooling == "last":
            return LastState(self.width // 2 if self.bidirectional else self.width)
        return pooling(self.pooling, self.width)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=2e-3)}
