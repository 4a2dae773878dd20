"""Tags for words: what puts together the states of a word's tokens and its characters, and decides on tags."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Batch, Learner, Supervised, TokenBackbone
from models.parts import chains
from models.parts.pooling import MaxPooling, inside
from models.parts.precision import autocast
from models.parts.recurrent import Recurrent
from models.parts.texts import token_embedding

CHARACTER, FILTERS, KERNEL = 32, 64, 3
"""Width of the character embeddings; filters over them, and how many characters each looks at."""
NEVER = -1e4
"""What a forbidden step is worth: so little that it is never taken, and yet a number."""


class Letters(nn.Module):
    """Features of words from their characters: a convolution, and its maximum (Ma and Hovy, 2016)."""

    width = FILTERS

    def __init__(self, alphabet: int) -> None:
        super().__init__()
        self.embedding = token_embedding(alphabet, CHARACTER)
        self.convolution = nn.Conv1d(CHARACTER, FILTERS, KERNEL, padding=KERNEL // 2)

    def forward(self, letters: Tensor) -> Tensor:
        """Characters (B, W, C), 0 after the end, to (B, W, width)."""
        embedded = self.embedding(letters.flatten(0, 1)).mT
        found = F.relu(self.convolution(embedded)).amax(-1)
        return found.view(*letters.shape[:2], self.width)


class WordStates(nn.Module):
    """One state per word: those of its first and last token and its letters, read both ways once more."""

    def __init__(self, inputs: int, alphabet: int, width: int, dropout: float) -> None:
        super().__init__()
        self.letters = Letters(alphabet) if alphabet else None
        inputs = 2 * inputs + (Letters.width if alphabet else 0)
        forwards, backwards = (nn.LSTM(inputs, width // 2, batch_first=True) for _ in range(2))
        self.recurrent = Recurrent(forwards, backwards)
        self.norm = nn.LayerNorm(inputs)
        self.dropout = nn.Dropout(dropout)
        self.width = width + inputs

    def forward(self, states: Tensor, lengths: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        """States of tokens (B, T, D), and words as `Tagger.forward` gets them, to (B, W, width)."""
        first = words[..., 0].long()
        behind = torch.arange(first.shape[1], device=first.device) >= counts[:, None] - 1
        after = F.pad(first[:, 1:], (0, 1))
        last = torch.where(behind, lengths[:, None], after) - 1
        found = [_at(states, first), _at(states, last)]
        if self.letters is not None:
            found.append(self.letters(words[..., 1:].int()))
        features = self.dropout(self.norm(torch.cat(found, -1)))
        read = self.dropout(self.recurrent(features, counts))
        return torch.cat([read, features], -1)


def _at(states: Tensor, places: Tensor) -> Tensor:
    """The states (B, W, D) at `places` (B, W) of (B, T, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


class Tags(nn.Module):
    """How well each tag suits each word: (B, W, D) to (B, W, tags)."""

    def __init__(self, width: int, tags: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, tags)

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.linear(states)
        return scores


class ChainedTags(Tags):
    """The same together with how well tags follow each other: the potentials of chains (B, W, L, L)."""

    def __init__(self, width: int, tags: int) -> None:
        super().__init__(width, tags)
        self.first = nn.Parameter(torch.zeros(tags))
        self.transitions = nn.Parameter(torch.zeros(tags, tags))

    def forward(self, states: Tensor) -> Tensor:
        return _chained(super().forward(states), self.first, self.transitions)


def _chained(scores: Tensor, first: Tensor, transitions: Tensor) -> Tensor:
    """Scores (B, W, L) of tags and of their order as potentials (B, W, L, L)."""
    begin = (scores[:, :1] + first)[:, :, None].expand(-1, -1, len(first), -1)
    return torch.cat([begin, scores[:, 1:, None] + transitions], 1)


class Rules(nn.Module):
    """Which tags may come first, and which after which: what is decided never breaks them.

    It makes of what a head says the loss, a mean over words, and the tags with their probabilities.
    """

    def __init__(self, first: Tensor, after: Tensor) -> None:
        """What is allowed: first (L,), and in row i after tag i (L, L)."""
        super().__init__()
        self.free = bool(first.all() and after.all())
        self.first: Tensor
        self.after: Tensor
        self.register_buffer("first", NEVER * ~first, persistent=False)
        self.register_buffer("after", NEVER * ~after, persistent=False)

    def forward(self, outputs: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
        """The loss of what a head says of tags (B, W)."""
        there = inside(tags, counts)
        losses = F.cross_entropy(outputs.flatten(0, 1), tags.flatten(), reduction="none")
        return (losses * there.flatten()).sum() / counts.sum()

    def decide(self, outputs: Tensor, counts: Tensor) -> Tensor:
        """Tags and their probabilities (B, W, 2), both -1 behind the last word."""
        scores = outputs.log_softmax(-1)
        if self.free:
            found = torch.stack([scores.argmax(-1).float(), scores.amax(-1).exp()], -1)
        else:
            found = _decided(_chained(scores, self.first, self.after), counts)
        return found.masked_fill(~inside(found, counts)[..., None], -1)


class ChainRules(Rules):
    """The same where the head gives potentials: what is likely or not are whole sequences of tags."""

    def forward(self, outputs: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
        likelihood = chains.log_likelihood(self._lawful(outputs), tags, counts)
        return -likelihood.sum() / counts.sum()

    def decide(self, outputs: Tensor, counts: Tensor) -> Tensor:
        found = _decided(self._lawful(outputs), counts)
        return found.masked_fill(~inside(found, counts)[..., None], -1)

    def _lawful(self, potentials: Tensor) -> Tensor:
        return torch.cat([potentials[:, :1] + self.first, potentials[:, 1:] + self.after], 1)


def _decided(potentials: Tensor, counts: Tensor) -> Tensor:
    tags = chains.best(potentials, counts)
    likely = chains.marginals(potentials, counts).gather(2, tags[..., None])
    return torch.cat([tags[..., None].float(), likely], -1)


class TagHead(nn.Module):
    """States of words, and what they say of tags."""

    def __init__(self, words: WordStates, tags: Tags) -> None:
        super().__init__()
        self.words, self.tags = words, tags

    def forward(self, states: Tensor, lengths: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        found: Tensor = self.tags(self.words(states, lengths, words, counts))
        return found


class Tagger(Supervised):
    """Learns the tags of words from states of tokens; starts from any learner with the same backbone."""

    backbone: TokenBackbone
    criterion: Rules

    def __init__(self, backbone: TokenBackbone, head: TagHead, rules: Rules) -> None:
        super().__init__(backbone, head, rules)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, T), lengths (B,), words (B, W, 1 + C), counts (B,) to what the head says of each word.

        Of each word: the place of its first token, and its characters.
        """
        tokens, lengths, words, counts = inputs
        states = self.backbone.states(tokens, lengths)
        found: Tensor = self.head(states, lengths, words, counts)
        return found

    def weight(self, batch: Batch) -> Tensor | int:
        return batch.targets[1].sum()

    def predict(self, *inputs: Tensor) -> Tensor:
        return self.criterion.decide(self(*inputs).float(), inputs[3])

    def take_over(self, base: Learner, *, head: bool) -> None:
        super().take_over(base, head=False)
        if isinstance(base, Tagger):
            for name, part in self.head.named_children():
                its = getattr(base.head, name, None)
                if its is not None and (head or name == "words"):
                    _copy(part, its)


class WholeHead(TagHead):
    """The same, and what the largest features of all words say of the label of their text (B, labels)."""

    def __init__(self, words: WordStates, tags: Tags, labels: int) -> None:
        super().__init__(words, tags)
        self.pool = MaxPooling()
        self.label = nn.Linear(words.width, labels)

    def forward(  # type: ignore[override]
        self, states: Tensor, lengths: Tensor, words: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = self.words(states, lengths, words, counts)
        return self.tags(found), self.label(self.pool(found, counts))


class WholeTagger(Tagger):
    """Learns the tags of words and the label of their text together: the likelihood of all of them."""

    def loss(self, batch: Batch) -> Tensor:
        tags, counts, label = batch.targets
        with autocast(self.precision, batch.inputs[0].device):
            of_tags, of_label = (self.kernels or self)(*batch.inputs)
        likelihood = self.criterion(of_tags.float(), tags, counts) * counts.sum() / len(batch)
        loss: Tensor = likelihood + F.cross_entropy(of_label.float(), label)
        return loss

    def weight(self, batch: Batch) -> Tensor | int:
        return len(batch)

    def predict(self, *inputs: Tensor) -> Tensor:
        """The scores of labels, then tags and their probabilities: (B, labels + 2 * W)."""
        of_tags, of_label = self(*inputs)
        decided = self.criterion.decide(of_tags.float(), inputs[3])
        return torch.cat([of_label.float(), decided.flatten(1)], 1)


def _copy(mine: nn.Module, its: nn.Module) -> None:
    """Weights of a part, where both have the same: another alphabet or width makes it a part of its own."""
    shapes = [{n: t.shape for n, t in part.state_dict().items()} for part in (mine, its)]
    if shapes[0] == shapes[1]:
        mine.load_state_dict(its.state_dict())
