"""Temporal convolutional network: dilated convolutions that only look back."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import SequenceEncoder, TokenBackbone
from models.parts.layers import Activation, activation
from models.parts.optimizers import AdamW
from models.parts.pooling import Pooling, pooling
from models.parts.recurrent import LastState
from models.parts.texts import passes


class TCN(SequenceEncoder):
    """Temporal convolutional network: each layer looks twice as far back as the one before (Bai et al., 2018)."""

    name: Literal["tcn"] = "tcn"
    width: int = Field(64, ge=1, le=4096, description="Channels of every layer.")
    layers: int = Field(
        4,
        ge=1,
        le=16,
        description="Residual layers of two convolutions each; each looks twice as far as the one before.",
    )
    kernel: int = Field(3, ge=2, le=31, description="Steps that a convolution looks at.")
    activation: Activation = Field("relu", description="Nonlinearity behind each convolution.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of states dropped in training.")
    pooling: Pooling | Literal["last"] = Field(
        "max", description="How the states of a sequence become one vector."
    )

    def over_vectors(self, features: int, max_length: int) -> "TemporalBackbone":
        return TemporalBackbone(features, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=2e-3)}


class Causal(nn.Module):
    """A dilated convolution over what came before, and a norm of each step by itself."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, dilation=dilation)
        self.norm = nn.LayerNorm(width)
        self.back = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        """States (B, T, width) to (B, T, width)."""
        found = self.convolution(F.pad(x.transpose(1, 2), (self.back, 0)))
        normed: Tensor = self.norm(found.transpose(1, 2))
        return normed


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, options: TCN, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Causal(options.width, options.kernel, dilation),
            activation(options.activation),
            nn.Dropout(options.dropout),
            Causal(options.width, options.kernel, dilation),
            activation(options.activation),
            nn.Dropout(options.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """States (B, T, width) to (B, T, width)."""
        y: Tensor = x + self.layers(x)
        return y


class TemporalBackbone(TokenBackbone):
    """An embedding of each step, residual layers, and a pooling of their states."""

    def __init__(self, features: int, options: TCN) -> None:
        super().__init__()
        self.width = options.width
        self.embedding = nn.Linear(features, options.width)
        self.layers = nn.ModuleList(
            Residual(options, 2**number) for number in range(options.layers)
        )
        self.pool = _pool(options.pooling, options.width)

    def blocks(self) -> list[nn.Module]:
        return [self.embedding, *self.layers, self.pool]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (B, T, features) to (B, T, width); what stands behind a sequence is never looked at."""
        states: Tensor = self.embedding(tokens)
        for layer in self.layers:
            states = layer(states)
        return states

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.states(tokens, lengths), lengths)
        return pooled


def _pool(name: Pooling | Literal["last"], width: int) -> nn.Module:
    return LastState(width) if name == "last" else pooling(name, width)
