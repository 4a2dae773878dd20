"""Bag of n-grams: short runs of tokens, each with a vector, and their sum."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Backbone, TextEncoder
from models.parts.optimizers import AdamW
from models.parts.pooling import inside
from models.parts.texts import passes

_SCALE = 1e-3
_FEW = 2_000
_PRIME, _MIXER = 1_000_003, 0x2545F4914F6CDD1D


class BagOfNgrams(TextEncoder):
    """Sum of vectors of runs of tokens: nearly as fast as a linear model of n-grams (Bojanowski et al., 2017)."""

    name: Literal["bag-of-ngrams"] = "bag-of-ngrams"
    longest: int = Field(2, ge=1, le=16, description="Tokens of the longest runs that count.")
    buckets: int = Field(
        262_144,
        ge=256,
        le=8_388_608,
        description="Vectors for runs to share (hashing, Weinberger et al., 2009).",
    )
    width: int = Field(16, ge=1, le=1024, description="Width of these vectors.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of features dropped in training.")

    def build(self, vocabulary: int, max_length: int) -> Backbone:
        return Ngrams(self)

    def defaults(self, examples: int) -> dict[str, Any]:
        # Small sets have so few steps that they must be long: a toy rule is not learned in 40 shorter ones.
        rate = 1e-2 if examples < _FEW else 2e-3
        optimizer = AdamW(learning_rate=rate, weight_decay=0.5)
        return {"epochs": passes(examples), "optimizer": optimizer}


class Ngrams(Backbone):
    """A vector for each run of tokens, and their sum over the root of their number."""

    def __init__(self, options: BagOfNgrams) -> None:
        super().__init__()
        self.longest = options.longest
        self.embedding = nn.EmbeddingBag(options.buckets, options.width, mode="sum")
        # Runs never met must say next to nothing, so they do not begin as single tokens do elsewhere.
        nn.init.normal_(self.embedding.weight, std=_SCALE)
        self.dropout = nn.Dropout(options.dropout)
        self.width = options.width

    def blocks(self) -> list[nn.Module]:
        return [self.embedding]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        found = list(runs(tokens, self.longest))
        within = inside(tokens, lengths)
        # A run is in the text if its last token is.
        counts = torch.cat([within[:, -run.shape[1] :] for run in found], 1).float()
        shares = counts / counts.sum(1, keepdim=True).sqrt()
        ids = torch.cat(found, 1) % self.embedding.num_embeddings
        # Flat, so that a graph of it holds for any number of texts, one as well.
        starts = torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
        sums = self.embedding(ids.flatten(), starts, per_sample_weights=shares.flatten())
        pooled: Tensor = self.dropout(sums)
        return pooled


def runs(tokens: Tensor, longest: int) -> Iterator[Tensor]:
    """Numbers (B, T - n + 1) for the runs of n tokens (B, T), n from 1 to `longest` or T; the same for the same run."""
    number = torch.zeros_like(tokens)
    for length in range(1, min(longest, tokens.shape[1]) + 1):
        here = tokens.shape[1] - length + 1
        number = number[:, :here] * _PRIME + tokens[:, length - 1 :] + length
        # What differs in any bit differs in the lowest, too, by which a bucket is chosen; products wrap around.
        mixed = (number ^ (number >> 29)) * _MIXER
        yield mixed ^ (mixed >> 32)
