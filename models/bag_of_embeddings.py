"""Bag of embeddings: the mean of a text's token vectors."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from models.base import Backbone, TextEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import MeanPooling
from models.parts.texts import passes, token_embedding


class BagOfEmbeddings(TextEncoder):
    """Mean of token embeddings, blind to their order: fast and hard to beat (Joulin et al., 2017)."""

    name: Literal["bag-of-embeddings"] = "bag-of-embeddings"
    width: int = Field(128, ge=1, le=4096, description="Width of the token embeddings.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of features dropped in training.")

    def build(self, vocabulary: int, max_length: int) -> Backbone:
        return MeanEmbedding(vocabulary, self.width, self.dropout)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=5e-3)}


class MeanEmbedding(Backbone):
    """Embeddings and their mean."""

    def __init__(self, vocabulary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = token_embedding(vocabulary, width)
        self.pool = MeanPooling()
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def blocks(self) -> list[nn.Module]:
        return [self.embedding]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.dropout(self.pool(self.embedding(tokens), lengths))
        return pooled
