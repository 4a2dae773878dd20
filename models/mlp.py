"""Multilayer perceptron on rows of a table."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Backbone, TableBackbone
from models.parts.layers import Activation, Norm, activation, row_norm, sequence
from models.parts.optimizers import AdamW

Width = Annotated[int, Field(ge=1, le=16_384)]


class MLP(TableBackbone):
    """Feed-forward network on numbers and category embeddings (Rumelhart et al., 1986)."""

    name: Literal["mlp"] = "mlp"
    layers: int = Field(
        2, ge=1, le=64, description="Hidden layers; not used when `width` is a list."
    )
    width: Width | Annotated[list[Width], Field(min_length=1, max_length=64)] = Field(
        128, description="Width of every hidden layer, or a list with the width of each."
    )
    activation: Activation = Field("relu", description="Nonlinearity of the hidden layers.")
    norm: Norm = Field("batch", description="Normalisation in front of each nonlinearity.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of features dropped in training.")
    skip: bool = Field(
        True, description="Add what goes into a hidden layer to what comes out (He et al., 2016)."
    )
    embedding: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Width of the category embeddings; null grows it with the number of categories.",
    )

    @property
    def widths(self) -> list[int]:
        """The width of each hidden layer."""
        return [self.width] * self.layers if isinstance(self.width, int) else self.width

    def backbone(self, numeric: int, cardinalities: Sequence[int]) -> Backbone:
        return Perceptron(numeric, cardinalities, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3)}


class Inputs(nn.Module):
    """Numbers and category embeddings side by side."""

    def __init__(self, numeric: int, cardinalities: Sequence[int], embedding: int | None) -> None:
        super().__init__()
        # The rule of thumb of Howard and Gugger (2020).
        widths = [embedding or min(50, round(1.6 * size**0.56)) for size in cardinalities]
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, width) for size, width in zip(cardinalities, widths, strict=True)
        )
        self.width = numeric + sum(widths)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Numbers (B, numeric) and categories (B, columns) to (B, width)."""
        if not len(self.embeddings):
            return numbers
        pairs = zip(self.embeddings, categories.unbind(1), strict=True)
        return torch.cat([numbers, *(embedding(column) for embedding, column in pairs)], 1)


class Hidden(nn.Module):
    """One hidden layer, with or without a way around it."""

    def __init__(self, inputs: int, width: int, options: MLP) -> None:
        super().__init__()
        self.layer = sequence(
            nn.Linear(inputs, width),
            row_norm(options.norm, width),
            activation(options.activation),
            nn.Dropout(options.dropout),
        )
        self.skip = options.skip and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, inputs) to (B, width)."""
        y: Tensor = self.layer(x)
        return x + y if self.skip else y


class Perceptron(Backbone):
    """Inputs and hidden layers."""

    def __init__(self, numeric: int, cardinalities: Sequence[int], options: MLP) -> None:
        super().__init__()
        self.inputs = Inputs(numeric, cardinalities, options.embedding)
        widths = [self.inputs.width, *options.widths]
        self.hidden = nn.ModuleList(
            Hidden(before, after, options) for before, after in pairwise(widths)
        )
        self.width = widths[-1]

    def blocks(self) -> list[nn.Module]:
        return [self.inputs, *self.hidden]

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Numbers (B, numeric) and categories (B, columns) to (B, width)."""
        x: Tensor = self.inputs(numbers, categories)
        for layer in self.hidden:
            x = layer(x)
        return x
