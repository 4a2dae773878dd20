"""Language models: networks that tell the next token of a text, and so can go on with it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import PADDING, SENTENCE_END, UNKNOWN, Batch, CausalBackbone, Supervised
from models.parts import sampling
from models.parts.pooling import inside
from models.parts.precision import autocast

CONTEXT, COUNTED, CHARACTERS, MOST, TOP_K, SEED = range(6)
"""What the whole numbers (B, 6) that come with texts are: tokens that are only looked back at, tokens whose
probability is asked for, characters these stand for, tokens to add at most, and how to choose them."""
TEMPERATURE, TOP_P, PENALTY = range(3)
"""What the fractions (B, 3) are."""
OUTPUTS = 4
"""Outputs (B, 4 + tokens) begin with a logarithm of a probability; behind it are the numbers of tokens and of
characters it is of and `MOST`, and at last, -1 where there is none, the tokens."""
_AT_ONCE = 1 << 23
"""Scores of next tokens in memory at a time."""


class LanguageModel(Supervised):
    """Predicts each token of a text from those before it.

    Texts (B, T) begin with `SENTENCE_END`, which also stands where a text is over.
    """

    backbone: CausalBackbone

    def __init__(self, backbone: CausalBackbone, vocabulary: int) -> None:
        super().__init__(backbone, nn.Linear(backbone.width, vocabulary), nn.CrossEntropyLoss())
        self.vocabulary = vocabulary

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores (B, T, vocabulary) of the tokens that come after each."""
        tokens, lengths = inputs[:2]
        scores: Tensor = self.head(self.backbone.states(tokens, lengths))
        return scores

    def loss(self, batch: Batch) -> Tensor:
        tokens, lengths = batch.inputs[:2]
        with autocast(self.precision, tokens.device):
            scores = (self.kernels or self)(tokens, lengths)
        following = tokens.roll(-1, 1)
        following = following.masked_fill(~inside(tokens, lengths - 1), -100)
        total = F.cross_entropy(scores.float().flatten(0, 1), following.flatten(), reduction="sum")
        return total / self.weight(batch)

    def weight(self, batch: Batch) -> Tensor | int:
        return (batch.inputs[1] - 1).sum().clamp(min=1)

    def predict(self, *inputs: Tensor) -> Tensor:
        """How likely texts are, and what comes after them; see `OUTPUTS`."""
        tokens, lengths, numbers, fractions = inputs
        added = [*self.go_on(tokens, lengths, numbers, fractions)]
        ids = torch.stack(added, 1) if added else tokens[:, :0]
        told = torch.stack(
            [
                self._likelihood(tokens, lengths, numbers),
                numbers[:, COUNTED],
                numbers[:, CHARACTERS],
                numbers[:, MOST],
            ],
            1,
        )
        return torch.cat([told, ids], 1)

    def _likelihood(self, tokens: Tensor, lengths: Tensor, numbers: Tensor) -> Tensor:
        """The logarithm (B,) of the probability of the tokens that count."""
        places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        begin = numbers[:, CONTEXT, None]
        counts = (places >= begin) & (places < begin + numbers[:, COUNTED, None])
        found = []
        rows = max(1, _AT_ONCE // (tokens.shape[1] * self.vocabulary))
        for some, length, counted in zip(
            tokens.split(rows), lengths.split(rows), counts.split(rows), strict=True
        ):
            scores = self(some, length)[:, :-1].float()
            following = some[:, 1:, None]
            logs = scores.gather(2, following)[..., 0] - scores.logsumexp(2)
            found.append((logs * counted).sum(1, dtype=torch.float64))
        return torch.cat(found)

    def go_on(
        self, tokens: Tensor, lengths: Tensor, numbers: Tensor, fractions: Tensor
    ) -> Iterator[Tensor]:
        """The tokens (B,) that come next, one after the other; -1 where a text is over.

        What was read is kept, so that each token costs the same (Transformer: keys and values).
        Which tokens a text gets is a function of itself, the model and its seed.
        """
        most = numbers[:, MOST]
        steps = int(most.max())
        if not steps:
            return
        draws = sampling.numbers(numbers[:, SEED], steps)
        states, memory = self.backbone.read_on(tokens, lengths)
        states = states[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        scores = self.head(states).float()
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, tokens, True)
        going, one = most > 0, torch.ones_like(lengths)
        for step in range(steps):
            token = _choose(scores, seen, numbers[:, TOP_K], fractions, draws[:, step])
            going = going & (token != SENTENCE_END)
            yield token.where(going, -1)
            going = going & (step + 1 < most)
            if step + 1 == steps or not going.any():
                return
            seen.scatter_(1, token[:, None], True)
            states, memory = self.backbone.read_on(token[:, None], one, memory)
            scores = self.head(states[:, 0]).float()


def _choose(
    scores: Tensor, seen: Tensor, top_k: Tensor, fractions: Tensor, draws: Tensor
) -> Tensor:
    """A token for each row of scores (B, vocabulary), by a number drawn for it.

    Tokens seen before lose by the penalty (Keskar et al., 2019).
    """
    temperature, top_p, penalty = fractions.unbind(1)
    penalised = torch.where(scores > 0, scores / penalty[:, None], scores * penalty[:, None])
    scores = torch.where(seen, penalised, scores)
    scores[:, [PADDING, UNKNOWN]] = -torch.inf
    return sampling.draw(scores, draws, temperature, top_k, top_p)
