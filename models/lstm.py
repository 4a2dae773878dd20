"""LSTM over texts."""

from typing import Literal

from torch import nn

from models.parts.recurrent import RecurrentEncoder


class LSTM(RecurrentEncoder):
    """Long short-term memory: a recurrent network with gates (Hochreiter and Schmidhuber, 1997)."""

    name: Literal["lstm"] = "lstm"

    def cell(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.LSTM(inputs, width, batch_first=True)
