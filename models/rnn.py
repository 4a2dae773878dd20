"""Plain recurrent network over texts."""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from models.parts.optimizers import AdamW
from models.parts.recurrent import RecurrentEncoder
from models.parts.texts import passes


class RNN(RecurrentEncoder):
    """Simple recurrent network without gates (Elman, 1990)."""

    name: Literal["rnn"] = "rnn"
    activation: Literal["tanh", "relu"] = Field("tanh", description="Nonlinearity of the states.")

    def cell(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.RNN(inputs, width, nonlinearity=self.activation, batch_first=True)

    def defaults(self, examples: int) -> dict[str, Any]:
        # Without gates, gradients through many steps ask for smaller ones.
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=1e-3)}
