"""Mention ranking: finds the mentions of a document, and for each the earlier one that it refers back to."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import UNKNOWN, Batch, Supervised, TokenBackbone
from models.parts.pooling import inside
from models.parts.precision import autocast

FIELDS = 6
"""What is told of each mention: sentence, first word in it, the word behind the last, how likely this is a mention,
the place of the first mention of its cluster (-1: it is that), and how likely it belongs there."""
SEEN = 32
"""Tokens of a mention that are looked at; of a longer one, the last one beside them."""
KEPT = 0.4
"""Mentions that are found at most, as a share of the words (Lee et al., 2017)."""
_BUCKETS = 12
_SHARED = 6
_TOKENS_AT_A_TIME = 8_192
_FACTOR = 0x1E3779B97F4A7C15


class Spans(NamedTuple):
    """Mentions in the order of their document, as words; each (B, M)."""

    first: Tensor
    last: Tensor
    real: Tensor
    """Whether there is a mention, and not padding."""


class Mentions(NamedTuple):
    """What is compared of mentions."""

    vectors: Tensor
    """(B, M, width)"""
    shares: Tensor
    """How much each distinct token counts in a mention (B, M, V): at most 1 together."""
    holds: Tensor
    """Which distinct tokens are in a mention (B, M, V): 0 or 1."""
    strings: Tensor
    """Equal numbers for equal sequences of tokens (B, M)."""


class MentionScorer(nn.Module):
    """How likely spans of words are mentions, by the states at both ends and the number of words."""

    def __init__(self, width: int, hidden: int, widest: int, dropout: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.words = nn.Embedding(widest, hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, 1)

    def forward(self, first: Tensor, last: Tensor, ends: Tensor) -> Tensor:
        """States of each word's first and last token (B, N, width), and the words where spans end (N, widest).

        Logits (B, N, widest).
        """
        first, last = self.first(self.dropout(first)), self.last(self.dropout(last))
        spans = F.relu(first[:, :, None] + last[:, ends] + self.words.weight)
        scores: Tensor = self.score(spans).squeeze(-1)
        return scores


class Linker(nn.Module):
    """How likely a mention refers to each of those before it, or to none.

    A mention is the states at its ends, the mean of all that attention weighs, and its length (Lee et al., 2017);
    two are compared by these, by the tokens that they share, and by how far they are apart.
    """

    def __init__(self, width: int, hidden: int, window: int, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.attention = nn.Linear(width, 1)
        self.vector = nn.Linear(3 * width, hidden)
        self.words = nn.Embedding(_BUCKETS, hidden)
        self.anaphor, self.antecedent = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.alike = nn.Linear(hidden, hidden, bias=False)
        self.mentions_apart = nn.Embedding(_BUCKETS, hidden)
        self.sentences_apart = nn.Embedding(_BUCKETS, hidden)
        self.words_apart = nn.Embedding(_BUCKETS + 1, hidden)
        self.shared = nn.Linear(_SHARED, hidden, bias=False)
        self.link = nn.Linear(hidden, 1)
        self.new = nn.Sequential(nn.Linear(hidden + 2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, ids: Tensor, words: Tensor, spans: Spans) -> Tensor:
        """States (B, T, width), tokens (B, T) and words (B, N, 4) to logits (B, M, 1 + W).

        The first is of no antecedent, the next of the mention right before; -inf where there is none.
        """
        mentions = self._look(states, ids, words, spans)
        count = spans.first.shape[1]
        place = torch.arange(count, device=ids.device)[:, None]
        before = place - 1 - torch.arange(min(self.window, count), device=ids.device)  # (M, W)
        there = (before >= 0) & spans.real[..., None]
        before = before.clamp(min=0)
        exact = (mentions.strings[..., None] == mentions.strings[:, before]) & there
        often = exact.sum(-1)
        attended = _pairs(mentions.shares, before)
        common, sizes = _pairs(mentions.holds, before), mentions.holds.sum(-1).clamp(min=1)
        shared = torch.stack(
            [
                exact,
                exact & (exact.cumsum(-1) == 1),
                attended,
                common / sizes[..., None],
                common / sizes[:, before],
                often[:, before].float().log1p(),
            ],
            -1,
        )
        sentence = words[..., 2].gather(1, spans.first)
        gap = spans.first[..., None] - spans.last[:, before] - 1
        vectors = mentions.vectors
        pairs = (
            self.anaphor(vectors)[:, :, None]
            + self.antecedent(vectors)[:, before]
            + self.alike(vectors[:, :, None] * vectors[:, before])
            + self.mentions_apart(_buckets(place - 1 - before))
            + self.sentences_apart(_buckets(sentence[..., None] - sentence[:, before]))
            + self.words_apart(torch.where(gap < 0, _BUCKETS, _buckets(gap)))
            + self.shared(shared)
        )
        links = self.link(F.relu(pairs)).squeeze(-1).float()
        said = torch.stack([often > 0, attended.masked_fill(~there, 0).amax(-1)], -1)
        new = self.new(torch.cat([vectors, said.to(vectors.dtype)], -1)).float()
        return torch.cat([new, links.masked_fill(~there, -torch.inf)], -1)

    def _look(self, states: Tensor, ids: Tensor, words: Tensor, spans: Spans) -> Mentions:
        first = words[..., 0].gather(1, spans.first)
        last = words[..., 1].gather(1, spans.last)
        places = first[..., None] + torch.arange(SEEN, device=ids.device)  # (B, M, SEEN)
        within = places <= last[..., None]
        places = places.clamp(max=ids.shape[1] - 1)
        seen = _at(states, places)
        weights = self.attention(seen).squeeze(-1).float().masked_fill(~within, -torch.inf)
        weights = weights.softmax(-1)
        middle = (weights[..., None].to(seen.dtype) * seen).sum(2)
        ends = [_at(states, first), _at(states, last)]
        vectors = self.vector(self.dropout(torch.cat([*ends, middle], -1)))
        vectors = self.dropout(F.relu(vectors + self.words(_buckets(spans.last - spans.first))))

        tokens = _at(ids, places)
        known = within & (tokens != UNKNOWN)
        kinds, number = tokens.unique(return_inverse=True)
        none = weights.new_zeros(*first.shape, len(kinds))
        shares = none.scatter_add(2, number, weights * known)
        holds = none.scatter_add(2, number, known.to(weights.dtype)).clamp(max=1)
        return Mentions(
            vectors, shares, holds, _strings(tokens * within, (known == within).all(-1))
        )


def _strings(tokens: Tensor, known: Tensor) -> Tensor:
    """A number for each sequence of tokens (B, M, SEEN), 0 behind its end; one of its own where not all are known."""
    factors = torch.full((tokens.shape[2],), _FACTOR, device=tokens.device).cumprod(0)
    strings = (tokens * factors).sum(-1)  # overflows, as a hash may
    return torch.where(known, strings, -1 - torch.arange(tokens.shape[1], device=tokens.device))


def _pairs(of: Tensor, before: Tensor) -> Tensor:
    """Products of what mentions have (B, M, V) with what the ones at `before` (M, W) have: (B, M, W)."""
    return (of @ of.mT).gather(2, before.expand(len(of), -1, -1))


def _buckets(distances: Tensor) -> Tensor:
    """Distances in classes: 0, 1, 2, 3, 4, 5 to 7, 8 to 15, 16 to 31 ... (Clark and Manning, 2016)."""
    far = distances.clamp(min=1).float().log2().floor().long() + 3
    return torch.where(distances < 5, distances.clamp(min=0), far.clamp(max=_BUCKETS - 1))


def _at(values: Tensor, places: Tensor) -> Tensor:
    """The values (B, *places, ...) of (B, T, ...) at places (B, ...)."""
    rows = torch.arange(len(values), device=values.device)
    return values[rows.view(-1, *[1] * (places.dim() - 1)), places]


class MentionRanker(Supervised):
    """Reads a document in segments, finds its mentions, and links each to the likeliest before it (Lee et al., 2017).

    To find and to link are learned side by side, linking from the true mentions, so that it does as well with
    mentions that are given.

    Inputs: tokens (B, T, 2), which are ids and numbers of segments, and lengths; words (B, N, 4), which are their
    first and last tokens, their sentences and places in these, and lengths; mentions (B, M, 2), which are first and
    last words in the order of the document, and lengths; and whether those are the ones (B,), or are to be found.
    Targets: the true mentions (B, M, 3) in their order: first and last words, and clusters; and lengths.
    """

    def __init__(
        self, backbone: TokenBackbone, hidden: int, widest: int, window: int, dropout: float
    ) -> None:
        head = nn.ModuleDict(
            {
                "finder": MentionScorer(backbone.width, hidden, widest, dropout),
                "linker": Linker(backbone.width, hidden, window, dropout),
            }
        )
        super().__init__(backbone, head, nn.Identity())
        self.widest = widest

    def loss(self, batch: Batch) -> Tensor:
        tokens, lengths, words, counts, *_ = batch.inputs
        true, marks = batch.targets
        spans = Spans(true[..., 0], true[..., 1], inside(true, marks))
        with autocast(self.precision, tokens.device):
            states = self.states(tokens, lengths)
            scores, possible = self._spans(states, words, counts)
            links = self._link(states, tokens, words, spans)
        finding = _finding_loss(scores.float(), possible, spans) / (KEPT * counts)
        linking = _linking_loss(links, true[..., 2], spans.real) / marks.clamp(min=1)
        return (finding + linking).mean()

    def predict(self, *inputs: Tensor) -> Tensor:
        """What is told of each mention (B, M, FIELDS); -1 in the place of its sentence: there is none."""
        # What there is to say of every two mentions of a long document takes much memory.
        some = max(1, _TOKENS_AT_A_TIME // inputs[0].shape[1])
        parts = [self._answer(*part) for part in zip(*(t.split(some) for t in inputs), strict=True)]
        most = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[1]), value=-1) for part in parts])

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, T, 2) and lengths (B,) to states (B, T, width); segments know nothing of each other."""
        row, column = inside(tokens, lengths).nonzero(as_tuple=True)
        ids, segment = tokens[row, column].unbind(-1)
        opens = (column == 0) | (segment != segment.roll(1))
        starts = opens.nonzero()[:, 0]
        sizes = torch.diff(starts, append=starts.new_tensor([len(ids)]))
        number = opens.cumsum(0) - 1
        place = torch.arange(len(ids), device=ids.device) - starts[number]
        grid = ids.new_zeros(len(starts), int(sizes.max()))
        grid[number, place] = ids
        states: Tensor = self.backbone.states(grid, sizes)  # type: ignore[operator]
        whole = states.new_zeros(*tokens.shape[:2], states.shape[-1])
        return whole.index_put((row, column), states[number, place])

    def _spans(self, states: Tensor, words: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the spans of one word and more from each word on (B, N, widest), and which there are."""
        places = torch.arange(words.shape[1], device=words.device)[:, None]
        ends = places + torch.arange(self.widest, device=words.device)
        sentence, near = words[..., 2], ends.clamp(max=words.shape[1] - 1)
        possible = (ends < counts[:, None, None]) & (sentence[:, near] == sentence[..., None])
        first, last = (_at(states, words[..., side]) for side in (0, 1))
        scores: Tensor = self.head["finder"](first, last, near)  # type: ignore[index]
        return scores, possible

    def _link(self, states: Tensor, tokens: Tensor, words: Tensor, spans: Spans) -> Tensor:
        if spans.first.shape[1] == 0:
            return states.new_zeros(len(states), 0, 1).float()
        links: Tensor = self.head["linker"](states, tokens[..., 0], words, spans)  # type: ignore[index]
        return links

    def _answer(self, *inputs: Tensor) -> Tensor:
        tokens, lengths, words, counts, given, givens, are_given = inputs
        states = self.states(tokens, lengths)
        spans, likely = _likeliest(*self._spans(states, words, counts), counts)
        if are_given.any():
            asked = Spans(given[..., 0], given[..., 1], inside(given, givens))
            spans, likely = _either(are_given[:, None] > 0, asked, spans, likely)
        home, sure = _join(self._link(states, tokens, words, spans).softmax(-1))
        place = torch.arange(home.shape[1], device=home.device)
        start, end = _at(words, spans.first), _at(words, spans.last)
        told = torch.stack(
            [
                start[..., 2],
                start[..., 3],
                end[..., 3] + 1,
                likely,
                torch.where(home < place, home, -1),
                sure,
            ],
            -1,
        )
        return torch.where(spans.real[..., None], told.float(), -1.0)


def _join(links: Tensor) -> tuple[Tensor, Tensor]:
    """The first mention of each one's cluster, itself if it begins one, and how likely it is of that: (B, M) both.

    As in the loss, a cluster is as likely as all of its mentions together. `links` (B, M, 1 + W) are probabilities.
    """
    batch, count, width = links.shape
    home = torch.arange(count, device=links.device).repeat(batch, 1)
    sure = links[..., 0].clone()
    for place in range(1, count):
        before = torch.arange(place - 1, max(-1, place - width), -1, device=links.device)
        likely = torch.zeros_like(links[:, 0, :1]).expand(-1, place).contiguous()
        likely.scatter_add_(1, home[:, before], links[:, place, 1 : 1 + len(before)])
        most, best = likely.max(1)
        joins = most > sure[:, place]
        home[:, place] = torch.where(joins, best, place)
        sure[:, place] = torch.where(joins, most, sure[:, place])
    return home, sure


def _likeliest(scores: Tensor, possible: Tensor, counts: Tensor) -> tuple[Spans, Tensor]:
    """The spans that are rather mentions than not, and how likely they are (B, M), from `_spans`."""
    chances = scores.float().sigmoid().masked_fill(~possible, -1).flatten(1)
    most = (KEPT * counts).ceil().long()
    top, index = chances.topk(min(chances.shape[1], int(most.max())), 1)
    real = (top > 0.5) & (torch.arange(top.shape[1], device=top.device) < most[:, None])
    index = index.masked_fill(~real, chances.shape[1])
    order = index.argsort(1)[:, : int(real.sum(1).max())]
    index, real, top = (t.gather(1, order) for t in (index, real, top))
    index = index * real
    first = index // scores.shape[2]
    return Spans(first, first + index % scores.shape[2], real), top


def _either(are_given: Tensor, given: Spans, found: Spans, likely: Tensor) -> tuple[Spans, Tensor]:
    """The given mentions where there are such (B, 1), which are certain, and the found ones elsewhere."""
    count = max(given.first.shape[1], found.first.shape[1])

    def filled(values: Tensor) -> Tensor:
        return F.pad(values, (0, count - values.shape[1]))

    pairs = zip(given, found, strict=True)
    spans = Spans(*(torch.where(are_given, filled(one), filled(other)) for one, other in pairs))
    return spans, torch.where(are_given, 1.0, filled(likely))


def _finding_loss(scores: Tensor, possible: Tensor, true: Spans) -> Tensor:
    """Cross-entropy of all spans, summed (B,); true ones that are too wide to be found count nothing."""
    wide = true.last - true.first
    rows, columns = (true.real & (wide < scores.shape[2])).nonzero(as_tuple=True)
    targets = torch.zeros_like(scores)
    targets[rows, true.first[rows, columns], wide[rows, columns]] = 1
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (losses * possible).sum((1, 2))


def _linking_loss(links: Tensor, clusters: Tensor, real: Tensor) -> Tensor:
    """Minus the log of what all true antecedents get together, or none where there is none, summed (B,)."""
    count = clusters.shape[1]
    place = torch.arange(count, device=clusters.device)[:, None]
    before = place - 1 - torch.arange(links.shape[2] - 1, device=clusters.device)
    there = (before >= 0) & real[..., None]
    same = (clusters[:, before.clamp(min=0)] == clusters[..., None]) & there
    right = torch.cat([~same.any(-1, keepdim=True), same], -1)
    losses = links.logsumexp(-1) - links.masked_fill(~right, -torch.inf).logsumexp(-1)
    return losses.masked_fill(~real, 0).sum(-1)
