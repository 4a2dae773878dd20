"""Self-attentive text encoder: several weighted means over the states of an LSTM."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from models.base import TokenEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import AttentionPooling
from models.parts.recurrent import Recurrent, RecurrentBackbone
from models.parts.texts import passes, token_embedding


class Attention(TokenEncoder):
    """Attention with several hops over a bidirectional LSTM or bare embeddings (Lin et al., 2017)."""

    graph = "fixed"

    name: Literal["attention"] = "attention"
    width: int = Field(
        128,
        ge=2,
        le=4096,
        multiple_of=2,
        description="Width of the embeddings, the states and the text vector.",
    )
    context: Literal["lstm", "none"] = Field(
        "lstm", description="What tells a token of its neighbours: a two-way LSTM, or nothing."
    )
    hops: int = Field(4, ge=1, le=64, description="How many weighted means are taken of a text.")
    scorer: int = Field(
        64, ge=1, le=4096, description="Width of the hidden layer that scores the tokens."
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of embeddings and states dropped in training."
    )

    def build(self, vocabulary: int, max_length: int) -> RecurrentBackbone:
        layers = [Recurrent(self._direction(), self._direction())] if self.context == "lstm" else []
        pool = Hops(self.width, self.scorer, self.hops)
        embedding = token_embedding(vocabulary, self.width)
        return RecurrentBackbone(embedding, layers, pool, self.width, self.dropout)

    def _direction(self) -> nn.LSTM:
        return nn.LSTM(self.width, self.width // 2, batch_first=True)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=2e-3)}


class Hops(nn.Module):
    """Several weighted means of a text's states, mixed into one vector."""

    def __init__(self, width: int, scorer: int, hops: int) -> None:
        super().__init__()
        self.attention = AttentionPooling(width, scorer, hops)
        self.mix = nn.Linear(hops * width, width)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States (B, T, width) and lengths (B,) to (B, width)."""
        mixed: Tensor = self.mix(self.attention(states, lengths)).relu()
        return mixed
