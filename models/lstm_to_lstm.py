"""Recurrent encoder-decoder: an LSTM reads, another one writes and looks back."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import State
from models.parts.optimizers import AdamW
from models.parts.pooling import inside
from models.parts.recurrent import LastState, Recurrent
from models.parts.texts import token_embedding, writing_passes
from models.parts.writing import SequenceToSequence, WritingBackbone


class LSTMToLSTM(SequenceToSequence):
    """Two-way LSTM, and an LSTM that attends to its states (Bahdanau et al., 2015; Luong et al., 2015)."""

    name: Literal["lstm-seq2seq"] = "lstm-seq2seq"
    width: int = Field(
        128,
        ge=2,
        le=4096,
        multiple_of=2,
        description="Width of embeddings and states, both directions together.",
    )
    layers: int = Field(1, ge=1, le=16, description="Layers that read, on top of each other.")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Share of embeddings and states dropped in training."
    )

    def build(self, vocabulary: int) -> WritingBackbone:
        return LSTMWriter(vocabulary, self.width, self.layers, self.dropout)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": writing_passes(examples), "optimizer": AdamW(learning_rate=3e-3)}


class LSTMWriter(WritingBackbone):
    """Writes in two layers: the first one's states say where to look, the second one's what was found there.

    So no layer waits for what another found at the place before (Wu et al., 2016).
    """

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.embedding = token_embedding(vocabulary, width)
        self.readers = nn.ModuleList(
            Recurrent(_lstm(width, width // 2), _lstm(width, width // 2)) for _ in range(layers)
        )
        self.bridge = Bridge(width)
        self.looking, self.telling = _lstm(width, width), _lstm(2 * width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def blocks(self) -> list[nn.Module]:
        return [self.embedding, *self.readers, self.bridge, self._last()]

    def _last(self) -> nn.Module:
        return nn.ModuleList([self.looking, self.query, self.telling])

    def read(self, tokens: Tensor, lengths: Tensor) -> State:
        states = self.dropout(self.embedding(tokens))
        for layer in self.readers:
            states = self.dropout(layer(states, lengths))
        return states, inside(tokens, lengths), self.bridge(states, lengths)

    def begin(self, memory: State) -> State:
        first, second = memory[2].chunk(2, -1)
        return first, torch.zeros_like(first), second, torch.zeros_like(second)

    def write(self, written: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        states, attention, _ = self._go_on(written, memory, self.begin(memory))
        return states, attention

    def step(self, written: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        states, attention, state = self._go_on(written[:, None], memory, state)
        return states[:, 0], attention[:, 0], state

    def _go_on(self, written: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        source, there, _ = memory
        looking, first = _run(self.looking, self.dropout(self.embedding(written)), state[:2])
        scores = self.query(looking) @ source.mT / self.width**0.5  # (B, T, S)
        attention = scores.masked_fill(~there[:, None], -torch.inf).softmax(-1)
        seen = torch.cat([self.dropout(looking), attention @ source], -1)
        telling, second = _run(self.telling, seen, state[2:])
        return self.dropout(looking + telling), attention, (*first, *second)


class Bridge(nn.Module):
    """From what each direction knows at its end to where both writing layers begin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = LastState(width // 2)
        self.layer = nn.Linear(width, 2 * width)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States (B, S, width) and lengths (B,) to (B, 2 * width)."""
        begun: Tensor = self.layer(self.last(states, lengths)).tanh()
        return begun


def _lstm(inputs: int, width: int) -> nn.LSTM:
    return nn.LSTM(inputs, width, batch_first=True)


def _run(cells: nn.LSTM, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Sequences (B, T, D) from a state of two tensors (B, width) on: (B, T, width), and the last state."""
    # As in `read` of recurrent networks, for the processors that have no LSTM in half the bits.
    with torch.autocast("cpu", enabled=False):
        if x.device.type == "cpu":
            x, state = x.float(), tuple(part.float() for part in state)
        states, last = cells(x, tuple(part[None].contiguous() for part in state))
    return states, tuple(part[0] for part in last)
