"""Learners that read one sequence of tokens and write another, with words copied from what was read."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import PADDING, SENTENCE_END, Batch, State, Supervised, WritingBackbone
from models.parts.decoding import decode
from models.parts.pooling import inside
from models.parts.precision import autocast

_LEAST = 1e-9
"""A probability that can be told from none in float32."""


class Choosing(nn.Module):
    """The next token: one of the vocabulary, or a copy from the source (See et al., 2017)."""

    def __init__(self, width: int, vocabulary: int, copying: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.copying = nn.Linear(width, 1) if copying else None

    def logits(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States (N, width) and embeddings (V, width) to scores of the vocabulary (N, V)."""
        return F.linear(self.mix(states), embedding, self.bias)

    def likelihood(
        self, states: Tensor, attention: Tensor, source: Tensor, targets: Tensor, embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities (N,) of targets (N,), and the mean (N,) of those of the whole vocabulary.

        States (N, width), attention and source tokens (N, S).
        """
        logs = self.logits(states, embedding).float().log_softmax(-1)
        chosen = logs.gather(1, targets[:, None]).squeeze(1)
        if self.copying is not None:
            gate = self.copying(states).float().squeeze(1)
            copied = (attention.float() * (source == targets[:, None])).sum(1)
            copied = torch.where(targets > SENTENCE_END, copied, 0.0)
            chosen = torch.logaddexp(
                F.logsigmoid(gate) + chosen, F.logsigmoid(-gate) + (copied + _LEAST).log()
            )
        return chosen, logs.mean(-1)

    def forward(
        self, states: Tensor, attention: Tensor, source: Tensor, embedding: Tensor
    ) -> Tensor:
        """Log probabilities (N, V) of every token."""
        found = self.logits(states, embedding).float().softmax(-1)
        if self.copying is not None:
            gate = self.copying(states).float().sigmoid()
            copied = attention.float() * (source > SENTENCE_END)
            found = (gate * found).scatter_add(1, source, (1 - gate) * copied)
        return (found + _LEAST).log()


class Writer(Supervised):
    """Learns every next token of a target from those before it; answers by `decode`."""

    backbone: WritingBackbone
    head: Choosing

    def __init__(self, backbone: WritingBackbone, *, copying: bool, label_smoothing: float) -> None:
        head = Choosing(backbone.width, backbone.embedding.num_embeddings, copying)
        super().__init__(backbone, head, nn.Identity())
        self.label_smoothing = label_smoothing

    def loss(self, batch: Batch) -> Tensor:
        tokens, lengths, *_ = batch.inputs
        targets, target_lengths = batch.targets
        written = F.pad(targets[:, :-1], (1, 0), value=PADDING)
        with autocast(self.precision, tokens.device):
            states, attention = self.backbone(tokens, lengths, written)
            rows, places = inside(targets, target_lengths).nonzero(as_tuple=True)
            likely, spread = self.head.likelihood(
                states[rows, places],
                attention[rows, places],
                tokens[rows],
                targets[rows, places],
                self.backbone.embedding.weight,
            )
        share = self.label_smoothing
        return -((1 - share) * likely + share * spread).mean()

    def weight(self, batch: Batch) -> Tensor | int:
        return batch.targets[1].sum()

    def compile_for(self, samples: object, *, ragged: bool) -> None:
        """Nothing: what it computes in a step has as many shapes as targets have lengths."""

    def predict(self, *inputs: Tensor) -> Tensor:
        """Scores and tokens (B, 1 + T) of sources (B, S), of their lengths (B,), as `Choice` (B, 8) says."""
        tokens, lengths, how = inputs

        def step(written: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
            source, *looked_at = memory
            states, attention, state = self.backbone.step(written, tuple(looked_at), state)
            return self.head(states, attention, source, self.backbone.embedding.weight), state

        memory = self.backbone.read(tokens, lengths)
        return decode(step, (tokens, *memory), self.backbone.begin(memory), how)
