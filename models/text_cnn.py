"""Convolutional network over texts."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import TokenBackbone, TokenEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import MaxPooling
from models.parts.texts import passes, token_embedding


class TextCNN(TokenEncoder):
    """Convolutions of several widths over embeddings, the strongest answer of each kept (Kim, 2014)."""

    name: Literal["text-cnn"] = "text-cnn"
    embedding: int = Field(128, ge=1, le=4096, description="Width of the token embeddings.")
    kernels: list[Annotated[int, Field(ge=1, le=31)]] = Field(
        [2, 3, 4], min_length=1, max_length=16, description="How many tokens each filter looks at."
    )
    filters: int = Field(64, ge=1, le=4096, description="Filters of each kernel width.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of embeddings and features dropped in training."
    )

    def build(self, vocabulary: int, max_length: int) -> TokenBackbone:
        return Windows(vocabulary, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=2e-3)}


class Windows(TokenBackbone):
    """Embeddings, convolutions side by side, and their maximum over the text."""

    def __init__(self, vocabulary: int, options: TextCNN) -> None:
        super().__init__()
        self.embedding = token_embedding(vocabulary, options.embedding)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(options.embedding, options.filters, kernel) for kernel in options.kernels
        )
        self.kernels = options.kernels
        self.pool = MaxPooling()
        self.dropout = nn.Dropout(options.dropout)
        self.width = options.filters * len(options.kernels)

    def blocks(self) -> list[nn.Module]:
        return [self.embedding, self.convolutions]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(tokens)).mT  # (B, D, T), zero where padded
        found = [
            convolution(F.pad(embedded, ((kernel - 1) // 2, kernel // 2)))
            for kernel, convolution in zip(self.kernels, self.convolutions, strict=True)
        ]
        return F.relu(torch.cat(found, 1)).mT

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.dropout(self.pool(self.states(tokens, lengths), lengths))
        return pooled
