"""Hierarchical attention: words to sentences, sentences to a text."""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import PADDING, SENTENCE_END, Backbone, TextEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import AttentionPooling, inside
from models.parts.recurrent import Recurrent
from models.parts.texts import passes, token_embedding


class HierarchicalAttention(TextEncoder):
    """Attention over words, then over sentences, each on a two-way GRU (Yang et al., 2016)."""

    graph = None

    name: Literal["hierarchical-attention"] = "hierarchical-attention"
    embedding: int = Field(128, ge=1, le=4096, description="Width of the token embeddings.")
    width: int = Field(
        128, ge=2, le=4096, multiple_of=2, description="Width of word and sentence states."
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of embeddings and sentence vectors dropped in training."
    )

    def build(self, vocabulary: int, max_length: int) -> Backbone:
        return WordsAndSentences(vocabulary, self.embedding, self.width, self.dropout)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": passes(examples), "optimizer": AdamW(learning_rate=2e-3)}


class Sentences(NamedTuple):
    """The sentences of a batch of texts: S in all, at most N in one text."""

    tokens: Tensor
    """(S, W) int64, 0 after the end."""
    lengths: Tensor
    """(S,)"""
    text: Tensor
    """Which text each is of, (S,)."""
    place: Tensor
    """Which sentence of its text each is, (S,)."""
    counts: Tensor
    """Sentences of each text, (B,)."""


def sentences(tokens: Tensor, lengths: Tensor) -> Sentences:
    """Texts (B, T) cut behind every SENTENCE_END; the last sentence may lack one."""
    text, column = inside(tokens, lengths).nonzero(as_tuple=True)
    flat = tokens[text, column]  # every token of the batch, (M,)
    opens = (column == 0) | (flat == SENTENCE_END).roll(1)
    starts = opens.nonzero()[:, 0]
    sizes = torch.diff(starts, append=starts.new_tensor([len(flat)]))
    sentence = opens.cumsum(0) - 1
    word = torch.arange(len(flat), device=flat.device) - starts[sentence]
    grid = tokens.new_full((len(starts), int(sizes.max())), PADDING)
    grid[sentence, word] = flat
    counts = torch.bincount(text[starts], minlength=len(tokens))
    before = (counts.cumsum(0) - counts)[text[starts]]
    place = torch.arange(len(starts), device=flat.device) - before
    return Sentences(grid, sizes, text[starts], place, counts)


class Level(nn.Module):
    """A two-way GRU and attention over its states: one vector per sequence."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        forwards, backwards = (nn.GRU(inputs, width // 2, batch_first=True) for _ in range(2))
        self.recurrent = Recurrent(forwards, backwards)
        self.attention = AttentionPooling(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, inputs) and lengths (B,) to (B, width)."""
        vectors: Tensor = self.attention(self.recurrent(x, lengths), lengths)
        return vectors


class WordsAndSentences(Backbone):
    """Embeddings, a level over words, a level over sentences."""

    def __init__(self, vocabulary: int, embedding: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = token_embedding(vocabulary, embedding)
        self.words = Level(embedding, width)
        self.sentences = Level(width, width)
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def blocks(self) -> list[nn.Module]:
        return [self.embedding, self.words, self.sentences]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        cut = sentences(tokens, lengths)
        vectors = self.dropout(self.words(self.dropout(self.embedding(cut.tokens)), cut.lengths))
        grid = vectors.new_zeros(len(tokens), int(cut.counts.max()), self.width)
        grid = grid.index_put((cut.text, cut.place), vectors)
        pooled: Tensor = self.sentences(grid, cut.counts)
        return pooled
