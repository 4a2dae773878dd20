"""Two texts beside each other: which of their tokens match, which are left over, and what that says of the pair."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import PADDING, UNKNOWN, Supervised, TokenBackbone
from models.parts.pooling import inside
from models.parts.texts import token_embedding

BUCKETS = 1 << 16
"""Hashed pairs of tokens that are told apart."""
WIDTH = 64
"""Width of what tokens are compared by."""
CAUTION = 0.1
"""What scores by vectors are multiplied by: they learn after the leftovers, what those leave unsaid."""
PACE = 2.0
"""What scores by leftovers are multiplied by: rare words learn in the few steps in which they occur."""
CROSSED = 64
"""Tokens at the start of each text that are paired with those of the other."""
_HASH = (1_000_003, 7_919)
_OVERLAPS = 8


class Side(NamedTuple):
    """One text of each pair, seen from the other."""

    tokens: Tensor
    """(B, T)"""
    lengths: Tensor
    """(B,)"""
    inside: Tensor
    """Where there is a token, (B, T), bool."""
    shared: Tensor
    """Where there is one that the other text has too, (B, T), bool."""

    @property
    def own(self) -> Tensor:
        """Where there is a token that the other text lacks, (B, T), bool."""
        return self.inside & ~self.shared


def beside(a: Tensor, a_lengths: Tensor, b: Tensor, b_lengths: Tensor) -> tuple[Side, Side, Tensor]:
    """Tokens (B, Ta) and (B, Tb) as sides, and where they are the same (B, Ta, Tb)."""
    in_a, in_b = inside(a, a_lengths), inside(b, b_lengths)
    same = (a[:, :, None] == b[:, None]) & in_a[:, :, None] & in_b[:, None]
    return Side(a, a_lengths, in_a, same.any(2)), Side(b, b_lengths, in_b, same.any(1)), same


class Alignment(nn.Module):
    """Each token beside what is most like it in the other text (decomposable attention, Parikh et al., 2016)."""

    def __init__(self, vocabulary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = token_embedding(vocabulary, width)
        self.compare = nn.Linear(4 * width + 2, width)
        self.sharpness = nn.Parameter(torch.tensor(3.0))
        self.sameness = nn.Parameter(torch.tensor(2.0))
        """What being the same token adds to likeness."""
        self.dropout = nn.Dropout(dropout)
        self.width = 4 * width

    def forward(self, a: Side, b: Side, same: Tensor, rarity: Tensor) -> Tensor:
        """What the comparisons of both texts' tokens found: strongest and mean, (B, width)."""
        x, y = self.embedding(a.tokens), self.embedding(b.tokens)
        likeness = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT
        likeness = self.sharpness * likeness + self.sameness * same
        x, y = self.dropout(x), self.dropout(y)
        found = [
            *self._compared(x, y, likeness, a, b, rarity),
            *self._compared(y, x, likeness.mT, b, a, rarity),
        ]
        return torch.cat(found, 1)

    def _compared(
        self, x: Tensor, y: Tensor, likeness: Tensor, of: Side, to: Side, rarity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Comparisons of the tokens `x` (B, T, D) with the most alike of `y`: strongest, mean (B, D)."""
        shares = likeness.masked_fill(~to.inside[:, None], -torch.inf).softmax(2)
        other = shares.to(y.dtype) @ y
        flags = torch.stack([of.shared.to(x.dtype), rarity[of.tokens].to(x.dtype)], -1)
        compared = self.compare(torch.cat([x, other, (x - other).abs(), x * other, flags], -1))
        compared = compared.relu() * of.inside[..., None]
        return compared.amax(1), compared.sum(1) / of.lengths[:, None]


class Leftovers(nn.Module):
    """Class scores of the tokens that only one text has, by themselves and in pairs, one of each text.

    The wide part of wide and deep learning (Cheng et al., 2016): what a single word such as `not` says, or
    a pair such as `man` and `woman`, is learned from few examples. Pairs share weights by hashing.
    """

    def __init__(self, vocabulary: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Embedding(vocabulary, classes, PADDING)
        self.second = nn.Embedding(vocabulary, classes, PADDING)
        self.crossed = nn.Embedding(BUCKETS, classes)
        for weights in (self.first, self.second, self.crossed):
            nn.init.zeros_(weights.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a: Side, b: Side) -> Tensor:
        """Scores (B, classes)."""
        scores = self._of(self.first, a.tokens, a.own) + self._of(self.second, b.tokens, b.own)
        x, y = a.tokens[:, :CROSSED, None], b.tokens[:, None, :CROSSED]
        pairs = (x * _HASH[0] + y * _HASH[1]) % BUCKETS
        apart = a.own[:, :CROSSED, None] & b.own[:, None, :CROSSED]
        return scores + self._of(self.crossed, pairs.flatten(1), apart.flatten(1))

    def _of(self, weights: nn.Embedding, ids: Tensor, counts: Tensor) -> Tensor:
        """The weights of those ids (B, N) that count (B, N), summed: (B, classes)."""
        found = weights(ids)
        summed: Tensor = (found * self.dropout(counts.to(found.dtype))[..., None]).sum(1)
        return summed


class Matching(nn.Module):
    """Class scores of a pair from the vectors of both texts, overlaps, leftovers and perhaps an alignment."""

    rarity: Tensor

    def __init__(
        self,
        inputs: int,
        rarity: Tensor,
        directions: int,
        classes: int,
        dropout: float,
        alignment: bool,
    ) -> None:
        """`rarity` (vocabulary,) is how much each token counts; pairs have one of `directions`, or 0."""
        super().__init__()
        self.register_buffer("rarity", rarity / rarity.max().clamp(min=1), persistent=False)
        self.alignment = Alignment(len(rarity), WIDTH, dropout) if alignment else None
        self.leftovers = Leftovers(len(rarity), classes, dropout)
        self.directions = nn.Embedding(directions + 1, classes)
        nn.init.zeros_(self.directions.weight)
        width = 4 * inputs + _OVERLAPS + (self.alignment.width if self.alignment else 0)
        self.hidden = nn.Linear(width, 2 * WIDTH)
        self.deep = nn.Linear(2 * WIDTH, classes)
        self.direct = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u: Tensor, v: Tensor, a: Side, b: Side, same: Tensor, way: Tensor) -> Tensor:
        """Vectors (B, inputs) of texts, these texts beside each other, directions (B,): (B, classes)."""
        parts = [self.dropout(torch.cat([u, v, (u - v).abs(), u * v], 1)), self._overlaps(a, b)]
        if self.alignment is not None:
            parts.append(self.dropout(self.alignment(a, b, same, self.rarity)))
        found = torch.cat(parts, 1)
        deep = self.deep(self.dropout(self.hidden(found).relu())) + self.direct(found)
        scores: Tensor = CAUTION * deep + PACE * self.leftovers(a, b) + self.directions(way)
        return scores

    def _overlaps(self, a: Side, b: Side) -> Tensor:
        """How much of each text is in the other, and how long both are: (B, _OVERLAPS)."""
        numbers = []
        for side in (a, b):
            weights = self.rarity[side.tokens] * side.inside
            shared = (weights * side.shared).sum(1) / weights.sum(1).clamp(min=1e-3)
            counts = side.shared.sum(1) / side.lengths
            numbers += [shared, counts, side.own.sum(1).log1p(), side.lengths.log()]
        return torch.stack(numbers, 1)


class PairLearner(Supervised):
    """A backbone that reads what each text of a pair has for itself, and a head that compares them."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, Ta) and lengths (B,), tokens (B, Tb) and lengths (B,), directions (B,)."""
        sides = beside(*inputs[:4])
        scores: Tensor = self.head(*self._read(sides, *inputs), *sides, inputs[-1])
        return scores

    def features_of(self, *inputs: Tensor) -> Tensor:
        """What is read of each text, and how the two differ (Conneau et al., 2017)."""
        u, v = self._read(beside(*inputs[:4]), *inputs)
        return torch.cat([u, v, (u - v).abs(), u * v], 1)

    def _read(self, sides: tuple[Side, Side, Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """A vector of each text (B, width), of what it has for itself."""
        a, a_lengths, b, b_lengths, _ = inputs
        longest = max(a.shape[1], b.shape[1])
        # What both have tells nothing apart, and would let texts be known by heart: with it, accuracy
        # on SICK is 0.817 instead of 0.846.
        left = [side.tokens.masked_fill(side.shared, UNKNOWN) for side in sides[:2]]
        # In one pass, so that the backbone's weights are in use once a step.
        both = torch.cat([F.pad(t, (0, longest - t.shape[1])) for t in left])
        u, v = self.backbone(both, torch.cat([a_lengths, b_lengths])).chunk(2)
        return u, v


class PairBackbone(TokenBackbone):
    """A text backbone that was shown two texts as one, and tells how they go together."""

    @abstractmethod
    def joined(self, a: Tensor, a_lengths: Tensor, b: Tensor, b_lengths: Tensor) -> Tensor:
        """Tokens (B, Ta) and (B, Tb) of two texts each, and lengths (B,) >= 1, to vectors (B, width)."""


class JoinedHead(nn.Module):
    """Class scores from the vector of a pair, and from its direction."""

    def __init__(self, inputs: int, directions: int, classes: int, dropout: float) -> None:
        """Pairs have one of `directions`, or 0."""
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(inputs, classes)
        self.directions = nn.Embedding(directions + 1, classes)
        nn.init.zeros_(self.directions.weight)

    def forward(self, vectors: Tensor, way: Tensor) -> Tensor:
        """Vectors (B, inputs) and directions (B,) to (B, classes)."""
        scores: Tensor = self.linear(self.dropout(vectors)) + self.directions(way)
        return scores


class JoinedPairLearner(Supervised):
    """A backbone that reads both texts of a pair as one, and a head for what it makes of them.

    Inputs are those of `PairLearner`.
    """

    backbone: PairBackbone
    beside = 1

    def __init__(self, backbone: PairBackbone, head: JoinedHead, criterion: nn.Module) -> None:
        super().__init__(backbone, head, criterion)

    def features_of(self, *inputs: Tensor) -> Tensor:
        features: Tensor = self.backbone.joined(*inputs[:4])
        return features
