"""Retrieval: texts for a query, found by their vectors and by their words in one index."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import SENTENCE_END, Backbone, Batch, Learner, Supervised
from models.parts.pooling import inside
from models.parts.precision import autocast
from models.parts.ragged import padded
from models.parts.training import Training, Transfer

HITS = 100
"""Documents that are found for a query."""
CUTOFF = 10
"""The first of them, which a reader looks at: what the weight of the vectors is chosen by."""
SHARE = 0.6
"""How much vectors count beside words where no query tells."""
SPAN = 32
"""Tokens of the longest part of a document that is a query for the rest of it."""
CONFUSING = 30
"""Documents with most words of a query that hard negatives are drawn from."""
SATURATION, LENGTH_SHARE = 1.5, 0.75
"""k1 and b of BM25. With the usual 1.2 and 0.75, nDCG@10 on Cranfield is 0.002 lower."""
SPREAD = 5.0
"""Norm of the longest embedding a training begins with: how far a step of an optimizer then turns them."""
_AT_ONCE = 256
_ROOM = 2**24
"""Scores that answering may hold at once."""


class Sequences(NamedTuple):
    """Sequences of ids: all values (M,) in one tensor, number i at offsets[i]:offsets[i + 1]."""

    values: Tensor
    offsets: Tensor

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those at `index` (B,), padded with 0 to (B, T), and their lengths (B,)."""
        return padded(self.values, self.offsets, index)

    def frequencies(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each pair of an id and a sequence that has it, in this order, and how often: three of (P,)."""
        lengths = self.offsets.diff()
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        pairs, times = torch.unique(
            self.values * len(lengths) + sequence, sorted=True, return_counts=True
        )
        return pairs // len(lengths), pairs % len(lengths), times


class Judged(NamedTuple):
    """Queries as a batch holds them, documents that answer them (Q, R), counted from 1, and their gains."""

    inputs: tuple[Tensor, ...]
    relevant: Tensor
    gains: Tensor


class Corpus(Protocol):
    """What is searched in."""

    def documents(self) -> tuple[Sequences, Sequences]:
        """The tokens of each document, and its terms, which are words by any number."""
        ...

    def held(self) -> Judged | None:
        """Queries that nothing is learned from, to choose by how much vectors count beside words."""
        ...


class Sized(nn.Module):
    """Keeps tensors whose sizes depend on the data: weights that are loaded make room for themselves."""

    sized: Sequence[str]

    def keep(self, **tensors: Tensor) -> None:
        """Make each of these a buffer of that name."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in self.sized:
            if prefix + name in state_dict:
                device = getattr(self, name).device
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Words(Sized):
    """Scores by the words that query and document share: BM25 (Robertson and Zaragoza, 2009)."""

    sized = ("terms", "offsets", "documents", "weights")
    terms: Tensor
    """Every term there is, in the order of their numbers, (V,)."""
    offsets: Tensor
    documents: Tensor
    """Those that have term v, at offsets[v]:offsets[v + 1], (P,)."""
    weights: Tensor
    """What the term adds to each one's score, (P,)."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.zeros(0, dtype=torch.long)
        self.keep(terms=whole, offsets=whole, documents=whole, weights=torch.zeros(0))

    def fill(self, found: Sequences, device: torch.device) -> None:
        """Take up documents by their terms."""
        terms, numbered = torch.unique(found.values, sorted=True, return_inverse=True)
        term, document, times = Sequences(numbered, found.offsets).frequencies()
        lengths, having = found.offsets.diff(), torch.bincount(term, minlength=len(terms))
        rarity = torch.log1p((len(lengths) - having + 0.5) / (having + 0.5))
        relative = lengths / lengths.float().mean().clamp(min=1)
        damping = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * relative[document])
        weights = rarity[term] * times * (SATURATION + 1) / (times + damping)
        offsets = F.pad(having.cumsum(0), (1, 0))
        tables = {"terms": terms, "offsets": offsets, "documents": document, "weights": weights}
        self.keep(**{name: table.to(device) for name, table in tables.items()})

    def forward(self, terms: Tensor, lengths: Tensor, documents: int) -> Tensor:
        """Terms (B, T) and how many there are (B,) to scores (B, documents), the best of each query 1."""
        scores = torch.zeros(len(terms) * documents, device=terms.device)
        if len(self.terms):
            place = torch.searchsorted(self.terms, terms).clamp(max=len(self.terms) - 1)
            known = (self.terms[place] == terms) & inside(terms, lengths)
            query, place = known.nonzero()[:, 0], place[known]
            starts, counts = self.offsets[place], self.offsets[place + 1] - self.offsets[place]
            each = torch.arange(int(counts.sum()), device=terms.device)
            each += (starts - counts.cumsum(0) + counts).repeat_interleave(counts)
            at = query.repeat_interleave(counts) * documents + self.documents[each]
            scores.index_add_(0, at, self.weights[each])
        scores = scores.view(len(terms), documents)
        best: Tensor = scores.amax(1, keepdim=True)
        return scores / best.clamp(min=1e-9)


class Retriever(Sized, Supervised):
    """One encoder for queries and documents, and the index of all documents.

    Learns to tell the documents that answer a query from those of the other queries in the batch, and from
    others with the same words (Karpukhin et al., 2020). A document alone is an example, too: a part of it
    is the query for the rest (inverse cloze, Lee et al., 2019).
    """

    sized = ("tokens", "offsets", "vectors")
    tokens: Tensor
    offsets: Tensor
    """Where the tokens of each document begin, (N + 1,)."""
    vectors: Tensor
    """Of all documents, (N, width)."""
    fresh: Tensor
    """Whether these are what the encoder makes of the documents by now, ()."""
    share: Tensor
    """How much vectors count beside words, from 0 to 1, ()."""

    def __init__(
        self,
        backbone: Backbone,
        corpus: Corpus,
        *,
        temperature: float,
        hard_negatives: int,
        learns: bool = True,
    ) -> None:
        super().__init__(backbone, nn.Identity(), nn.CrossEntropyLoss(reduction="none"))
        self.corpus, self.learns = corpus, learns
        self.temperature, self.hard_negatives = temperature, hard_negatives
        self.words = Words()
        whole = torch.zeros(0, dtype=torch.long)
        self.keep(tokens=whole, offsets=whole, vectors=torch.zeros(0, backbone.width))
        self.keep(fresh=torch.tensor(False), share=torch.tensor(SHARE))

    @property
    def documents(self) -> Sequences:
        return Sequences(self.tokens, self.offsets)

    # Learning

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        super().start(training, transfer, steps)
        tokens = self._take_up()
        if transfer is None and self.backbone.numbers_tokens:
            begin_with_topics(self.backbone, tokens, training.seed)

    def _take_up(self) -> Sequences:
        """Put the corpus into the index, its vectors aside; returns the tokens of its documents."""
        device = self.share.device
        tokens, terms = self.corpus.documents()
        self.words.fill(terms, device)
        vectors = torch.zeros(len(tokens.offsets) - 1, self.backbone.width)
        kept = {"tokens": tokens.values, "offsets": tokens.offsets, "vectors": vectors}
        self.keep(**{name: tensor.to(device) for name, tensor in kept.items()})
        self.fresh.fill_(False)
        return tokens

    def epochs(self, asked: int) -> int:
        return asked if self.learns else 1

    def batches(
        self, examples: int, lengths: Tensor | None, batch_size: int, generator: torch.Generator
    ) -> Sequence[Tensor]:
        # One that is not looked at: the loop counts on one step at least.
        return (
            super().batches(examples, lengths, batch_size, generator)
            if self.learns
            else [torch.zeros(1, dtype=torch.long)]
        )

    def train_step(self, batch: Batch, step: int) -> Tensor:
        if not self.learns:
            return torch.zeros((), device=self.share.device)
        self.fresh.fill_(False)
        return super().train_step(batch, step)

    def compile_for(self, samples: Sequence[Batch], *, ragged: bool) -> None:
        """Nothing: what is encoded in a step is drawn in it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.transfer is None:
            return Learner.parameter_groups(self)
        return self.backbone_groups(self.transfer)

    def weight(self, batch: Batch) -> Tensor:
        counted: Tensor = (batch.targets[0][:, 0] > 0).sum()
        return counted

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the queries that have an answer; of micro-batches, each has its own negatives."""
        tokens, lengths, terms, counts = batch.inputs
        relevant, _, gains, _, alone = batch.targets
        learns = relevant[:, 0] > 0
        drawn = torch.multinomial(gains, 1)
        answers = (relevant.gather(1, drawn)[:, 0] - 1).clamp(min=0)
        asked = learns & ~alone
        harder = self._confusing(terms[asked], counts[asked], relevant[asked])
        candidates = torch.cat([answers, harder])
        texts, text_lengths = self.documents.take(candidates)
        queries, texts, lengths, text_lengths = _cut(tokens, lengths, texts, text_lengths, alone)
        with autocast(self.precision, tokens.device):
            scores = self.encode(queries, lengths) @ self.encode(texts, text_lengths).T
        also = (candidates[None, :, None] == relevant[:, None] - 1).any(2)  # (B, candidates)
        also.fill_diagonal_(False)
        scores = (scores.float() / self.temperature).masked_fill(also, -torch.inf)
        losses = self.criterion(scores, torch.arange(len(scores), device=scores.device))
        mean: Tensor = (losses * learns).sum() / learns.sum().clamp(min=1)
        return mean

    @torch.no_grad()
    def _confusing(self, terms: Tensor, counts: Tensor, relevant: Tensor) -> Tensor:
        """Documents that share words with queries and do not answer them, some for each query."""
        if not (self.hard_negatives and len(terms)):
            return torch.zeros(0, dtype=torch.long, device=terms.device)
        scores = self.words(terms, counts, len(self.vectors))
        answers = (relevant - 1).clamp(min=0)
        scores.scatter_(1, answers, -1.0)
        best = scores.topk(min(CONFUSING, scores.shape[1])).indices
        size = (len(best), self.hard_negatives)
        drawn = torch.randint(best.shape[1], size, device=best.device)
        return torch.gather(best, 1, drawn).flatten()

    def take_over(self, base: Learner, *, head: bool) -> None:
        super().take_over(base, head=head)
        if isinstance(base, Retriever):
            self.share.copy_(base.share)

    # Answering

    def encode(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, T) and lengths (B,) to vectors (B, width) of length 1."""
        return F.normalize(self.backbone(tokens, lengths).float(), dim=1)

    def features_of(self, *inputs: Tensor) -> Tensor:
        return self.encode(*inputs[:2])

    def predict(self, *inputs: Tensor) -> Tensor:
        """The best documents and their scores (B, hits, 2), best first, of several with one score the first."""
        if not self.fresh:
            self._index()
        size = max(1, _ROOM // max(1, len(self.vectors)))
        pieces = zip(*(tensor.split(size) for tensor in inputs), strict=True)
        return torch.cat([self._best(*self._scores(*piece)) for piece in pieces])

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.predict(*inputs)

    def _scores(
        self, tokens: Tensor, lengths: Tensor, terms: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How similar each document is to a query by its vector, and by its words: twice (B, N)."""
        by_words = self.words(terms, counts, len(self.vectors))
        return self.encode(tokens, lengths) @ self.vectors.T, by_words

    def _best(self, by_vectors: Tensor, by_words: Tensor) -> Tensor:
        scores = self.share * by_vectors + (1 - self.share) * by_words
        # Rounding differs with the neighbours in a batch; which of two equal documents is first must not.
        scores = (scores.double() * 1e5).round()
        order = torch.arange(scores.shape[1], device=scores.device)
        scores -= order / (len(order) + 1)
        best = scores.topk(min(HITS, len(order)))
        return torch.stack([best.indices, best.values.ceil() / 1e5], 2).float()

    @torch.no_grad()
    def _index(self) -> None:
        """Encode all documents, and choose how much their vectors count."""
        if not len(self.vectors):  # nobody has started it
            with torch.inference_mode(False):
                self._take_up()
        for index in self.offsets.diff().argsort(stable=True).split(_AT_ONCE):
            self.vectors[index] = self.encode(*self.documents.take(index))
        held = self.corpus.held() if self.learns else None
        if held is not None:
            self.share.fill_(self._chosen(held))
        self.fresh.fill_(True)

    def _chosen(self, held: Judged) -> float:
        """The share of vectors by which held queries are answered best, to a hundredth; of several the usual one."""
        device = self.share.device
        by_vectors, by_words = self._scores(*(tensor.to(device) for tensor in held.inputs))
        gains = torch.zeros(len(by_words), by_words.shape[1] + 1, device=device)
        gains.scatter_(1, held.relevant.to(device), held.gains.to(device))
        gains = gains[:, 1:]
        first = min(CUTOFF, gains.shape[1])
        discounts = 1 / torch.arange(2, first + 2, device=device).log2()
        ideal = gains.topk(first).values @ discounts
        worth = {}
        for tenths in range(11):
            share = tenths / 10
            best = (share * by_vectors + (1 - share) * by_words).topk(first).indices
            found = gains.gather(1, best) @ discounts / ideal.clamp(min=1e-9)
            worth[share] = round(float(found.mean()), 2)
        return max(worth, key=lambda share: (worth[share], -abs(share - SHARE)))


def _cut(
    tokens: Tensor, lengths: Tensor, texts: Tensor, text_lengths: Tensor, alone: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and texts; of documents `alone` (B,), a part becomes the query and is taken out of the text."""
    rows = len(tokens)
    own, long = texts[:rows], text_lengths[:rows]
    size = (long // 3).clamp(1, SPAN)
    start = (torch.rand(rows, device=tokens.device) * (long - size + 1)).long()
    places = torch.arange(SPAN, device=tokens.device)
    span = own.gather(1, (start[:, None] + places).clamp(max=own.shape[1] - 1))
    span = span * (places < size[:, None])
    width = max(SPAN, tokens.shape[1])
    padded = F.pad(tokens, (0, width - tokens.shape[1]))
    queries = torch.where(alone[:, None], F.pad(span, (0, width - SPAN)), padded)
    query_lengths = torch.where(alone, size, lengths)

    places = torch.arange(own.shape[1], device=tokens.device)
    taken = (places >= start[:, None]) & (places < (start + size)[:, None])
    taken &= (alone & (long > size))[:, None]
    rest = own.gather(1, taken.long().argsort(dim=1, stable=True))
    long = long - taken.sum(1)
    rest = rest * inside(rest, long)
    longest = int(query_lengths.max())
    return (
        queries[:, :longest],
        torch.cat([rest, texts[rows:]]),
        query_lengths,
        torch.cat([long, text_lengths[rows:]]),
    )


@torch.no_grad()
def begin_with_topics(backbone: Backbone, documents: Sequences, seed: int) -> None:
    """Give token embeddings what documents tell by the words they share: latent semantic analysis.

    A token becomes its part in the main directions of the documents' weighted token counts (Deerwester
    et al., 1990), the longer the rarer it is: so the mean over a text is already its place among the topics.
    """
    embedding = next((m for m in backbone.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        return
    vocabulary, width = embedding.weight.shape
    token, document, times = documents.frequencies()
    count = len(documents.offsets) - 1
    rarity = torch.log(count / torch.bincount(token, minlength=vocabulary).clamp(min=1))
    rarity[: SENTENCE_END + 1] = 0
    weights = (1 + times.log()) * rarity[token]
    norms = torch.zeros(count).index_add_(0, document, weights**2).sqrt().clamp(min=1e-9)
    weights = weights / norms[document]
    table = torch.sparse_coo_tensor(
        torch.stack([document, token]), weights, (count, vocabulary), check_invariants=False
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        most = min(width + 16, count, vocabulary)
        *_, directions = torch.svd_lowrank(table.coalesce(), q=most, niter=4)
    topics = rarity[:, None] * directions[:, :width]
    longest = topics.norm(dim=1).max()
    if longest > 0:
        weight = embedding.weight
        weight[:, topics.shape[1] :] *= 0.1
        weight[:, : topics.shape[1]] = (topics * (SPREAD / longest)).to(weight.device)
        weight[: SENTENCE_END + 1] = 0
