"""Networks that read one sequence of tokens and write another, and how they learn, copying words of the source."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import PADDING, SENTENCE_END, Architecture, Backbone, Batch, State, Supervised
from models.parts.decoding import decode
from models.parts.pooling import inside
from models.parts.precision import autocast

_LEAST = 1e-9
"""A probability that can be told from none in float32."""


class WritingBackbone(Backbone):
    """Reads a source, and gives a state for each token of a target to come."""

    embedding: nn.Embedding
    """That of sources, of targets, and of what is answered (Press and Wolf, 2017)."""
    mixes: ClassVar[bool] = True
    """Whether states are mixed anew before they are compared with tokens."""
    most: int | None = None
    """Tokens that it can write; None: any number."""
    attends: bool = True
    """Whether anybody asks for attention; if not, it may be (B, T, 0)."""

    @property
    def scored(self) -> int:
        """How many tokens it gives scores of."""
        return self.embedding.num_embeddings

    @abstractmethod
    def read(self, tokens: Tensor, lengths: Tensor) -> State:
        """What writing looks back at, from a source (B, S) and its lengths (B,)."""

    @abstractmethod
    def write(self, written: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        """States (B, T, width) and attention (B, T, S), from each next token's predecessors (B, T)."""

    @abstractmethod
    def begin(self, memory: State) -> State:
        """The state of targets of which nothing is written."""

    @abstractmethod
    def step(self, written: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        """What `write` gives for one token (B,) more, (B, width) and (B, S), and the next state."""

    def forward(self, tokens: Tensor, lengths: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """`read` and `write`."""
        return self.write(written, self.read(tokens, lengths))

    def scores(self, states: Tensor, bias: Tensor) -> Tensor:
        """States (N, width) to how well each token follows, to which a bias is added: as many as are `scored`."""
        return F.linear(states, self.embedding.weight, bias)

    def places(self, tokens: Tensor) -> Tensor:
        """Where among its scores those of tokens are."""
        return tokens

    def by_tokens(self, chances: Tensor) -> Tensor:
        """What stands at the places of scores, for each token of the vocabulary (N, V)."""
        return chances


class SequenceToSequence(Architecture):
    """Learns to read one sequence of tokens and write another."""

    copies: ClassVar[bool] = True
    """Whether tokens of the source are copied where a request leaves that open."""

    @property
    def most_written(self) -> int | None:
        """Tokens of a target that it can write, if there is a limit."""
        return None

    @abstractmethod
    def build(self, vocabulary: int) -> WritingBackbone:
        """What reads sources and writes targets of tokens in [0, vocabulary)."""


class Choosing(nn.Module):
    """The next token: one of the vocabulary, or a copy from the source (See et al., 2017)."""

    def __init__(self, backbone: WritingBackbone, copying: bool) -> None:
        super().__init__()
        width = backbone.width
        self.mix = nn.Linear(width, width) if backbone.mixes else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(backbone.scored))
        self.copying = nn.Linear(width, 1) if copying else None

    def logits(self, states: Tensor, backbone: WritingBackbone) -> Tensor:
        """States (N, width) of the backbone to the scores that it gives."""
        return backbone.scores(self.mix(states), self.bias)

    def likelihood(
        self,
        states: Tensor,
        attention: Tensor,
        source: Tensor,
        targets: Tensor,
        backbone: WritingBackbone,
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities (N,) of targets (N,), and the mean (N,) of those of the whole vocabulary.

        States (N, width), attention and source tokens (N, S).
        """
        logs = self.logits(states, backbone).float().log_softmax(-1)
        chosen = logs.gather(1, backbone.places(targets)[:, None]).squeeze(1)
        if self.copying is not None:
            gate = self.copying(states).float().squeeze(1)
            copied = (attention.float() * (source == targets[:, None])).sum(1)
            copied = torch.where(targets > SENTENCE_END, copied, 0.0)
            chosen = torch.logaddexp(
                F.logsigmoid(gate) + chosen, F.logsigmoid(-gate) + (copied + _LEAST).log()
            )
        return chosen, logs.mean(-1)

    def forward(
        self, states: Tensor, attention: Tensor, source: Tensor, backbone: WritingBackbone
    ) -> Tensor:
        """Log probabilities (N, V) of every token."""
        found = backbone.by_tokens(self.logits(states, backbone).float().softmax(-1))
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
        super().__init__(backbone, Choosing(backbone, copying), nn.Identity())
        backbone.attends = copying
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
                self.backbone,
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
        if self.backbone.most is not None:
            how = torch.cat([how[:, :1], how[:, 1:2].clamp(max=self.backbone.most), how[:, 2:]], 1)

        def step(written: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
            source, *looked_at = memory
            states, attention, state = self.backbone.step(written, tuple(looked_at), state)
            return self.head(states, attention, source, self.backbone), state

        memory = self.backbone.read(tokens, lengths)
        return decode(step, (tokens, *memory), self.backbone.begin(memory), how)
