"""GRU over texts."""

from typing import Literal

from torch import nn

from models.parts.recurrent import RecurrentEncoder


class GRU(RecurrentEncoder):
    """Gated recurrent units: fewer gates than an LSTM (Cho et al., 2014)."""

    name: Literal["gru"] = "gru"

    def cell(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.GRU(inputs, width, batch_first=True)
