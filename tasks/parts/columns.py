"""Encoded data sets: columns of tensors whose slices are batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.base import Batch
from models.parts.ragged import padded


class Column(Protocol):
    """One aspect of every example."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the examples at `index` (B,)."""
        ...

    def select(self, index: Tensor) -> "Column":
        """The examples at `index` (n,) as a column of their own."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What to store; the keyword arguments that make the column again."""
        ...

    def continued(self, values: int) -> dict[str, Tensor]:
        """What to append to the `tensors` of a column with so many values to have this one's behind it."""
        ...


@dataclass(frozen=True)
class Dense:
    """Values of one shape: (N, ...)."""

    values: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        return (self.values.index_select(0, index),)

    def select(self, index: Tensor) -> "Dense":
        return Dense(self.values[index])

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def continued(self, values: int) -> dict[str, Tensor]:
        return self.tensors()


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths: all values (M, ...) in one tensor, example i at offsets[i]:offsets[i + 1]."""

    values: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.offsets.diff()

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        """Values padded with 0 (B, T, ...), T the longest of these, and lengths (B,)."""
        return padded(self.values, self.offsets, index)

    def select(self, index: Tensor) -> "Ragged":
        starts, lengths = self.offsets[index], self.lengths[index]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        places = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
        return Ragged(self.values[starts.repeat_interleave(lengths) + places], offsets)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "offsets": self.offsets}

    def continued(self, values: int) -> dict[str, Tensor]:
        return {"values": self.values, "offsets": self.offsets[1:] + values}


def ragged(sequences: Sequence[Sequence[int]]) -> Ragged:
    """A column of token sequences; an empty one becomes a single padding token, so that lengths are >= 1."""
    filled = [sequence or [0] for sequence in sequences]
    lengths = torch.tensor([0, *map(len, filled)])
    values = torch.tensor([value for sequence in filled for value in sequence])
    return Ragged(values, lengths.cumsum(0))


@dataclass(frozen=True)
class Columns:
    """An encoded split: what goes into the network, and what should come out of it."""

    inputs: tuple[Dense | Ragged, ...]
    targets: tuple[Dense | Ragged, ...] = ()

    @property
    def examples(self) -> int:
        return len(self.inputs[0])

    @property
    def lengths(self) -> Tensor | None:
        """Lengths (N,) of the first ragged input, by which batches are bucketed."""
        return next((c.lengths for c in self.inputs if isinstance(c, Ragged)), None)

    def select(self, index: Tensor) -> "Columns":
        """The examples at `index` (n,) as columns of their own."""
        return Columns(
            tuple(column.select(index) for column in self.inputs),
            tuple(column.select(index) for column in self.targets),
        )

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        return Batch(
            tuple(t for column in self.inputs for t in column.take(index)),
            tuple(t for column in self.targets for t in column.take(index)),
        )
