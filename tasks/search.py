"""Search: the documents of a corpus that answer a query, by a trained encoder and by words."""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.bag_of_embeddings import BagOfEmbeddings
from models.base import Architecture, Learner, TextEncoder
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.retrieval import HITS, Judged, Retriever, Sequences
from tasks.base import (
    Checked,
    Codec,
    DatasetOptions,
    Facts,
    Metrics,
    Objective,
    Upload,
    read_each,
    read_fields,
)
from tasks.parts.collections import (
    Document,
    documents_of,
    gains_of,
    is_document,
    queries_of,
    split_queries,
    together,
)
from tasks.parts.columns import Columns, Dense, Ragged
from tasks.parts.corpora import CORPUS_FORMATS, read_corpus
from tasks.parts.problems import Invalid, Problem
from tasks.parts.rankings import RANKING_METRICS, Ranked, evaluate_rankings, score_rankings
from tasks.parts.reading import LONG_TOKEN, TextTask
from tasks.parts.splits import Places, overlap
from tasks.parts.terms import MOST, PREFIX, terms
from tasks.parts.texts import check_text, measure
from tasks.parts.vocabulary import MAX_TEXT, BytePairs, Tokenizer, Vocabulary

HELD_OF = 5
"""Of so many judged queries one is held: nothing is learned from it, but how much vectors count."""
FEWEST_HELD, MOST_HELD = 2, 200


class SearchParameters(Plain):
    """How to search."""

    top_k: int = Field(10, ge=1, le=HITS, description="How many documents are wanted at the most.")


class SearchInput(SearchParameters):
    """One query."""

    query: str = Field(
        max_length=MAX_TEXT, description="Any text.", examples=["wings in supersonic flow"]
    )


class Hit(Plain):
    """A document that was found."""

    id: str = Field(description="Its id in the corpus.")
    score: float = Field(description="How well it answers the query: at most 1, higher is better.")
    title: str = Field(description="Its title; empty if it has none.")
    text: str = Field(description="Its text.")


class SearchPrediction(Plain):
    """The documents that answer a query best."""

    hits: list[Hit] = Field(description="The best first.")


class SearchCodec(Codec):
    """A vocabulary, the documents, and queries to choose by how much vectors count beside words."""

    vocabulary: Vocabulary
    packed: str
    """Id, title and text of each document: JSON, compressed, in base64; plain it is three times as large."""
    held_queries: dict[str, dict[str, float]]
    """Each with the gains of the documents that answer it."""

    @cached_property
    def corpus(self) -> list[Document]:
        return [Document(*found) for found in json.loads(zlib.decompress(b64decode(self.packed)))]

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each document is in the corpus, by its id, counted from 1."""
        return {document.id: place for place, document in enumerate(self.corpus, 1)}

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        inputs = self._inputs(queries_of(examples))
        if not targets:
            return Columns(inputs)
        relevant: list[list[tuple[int, float]]] = []
        for query, gains in zip(queries_of(examples), gains_of(examples), strict=True):
            known = [] if query in self.held_queries else self._known(gains)
            relevant.append(known or [(0, 1.0)])
        lengths = torch.tensor([0, *map(len, relevant)]).cumsum(0)
        places = torch.tensor([place for known in relevant for place, _ in known])
        worth = torch.tensor([gain for known in relevant for _, gain in known])
        alone = Dense(torch.from_numpy(is_document(examples).to_numpy().copy()))
        return Columns(inputs, (Ragged(places, lengths), Ragged(worth, lengths), alone))

    def _inputs(self, queries: Sequence[str]) -> tuple[Ragged, Ragged]:
        return self.vocabulary.encode(queries), terms(queries, MOST)

    def _known(self, gains: Mapping[str, float]) -> list[tuple[int, float]]:
        return [(self.places[id], gain) for id, gain in gains.items() if id in self.places]

    def documents(self) -> tuple[Sequences, Sequences]:
        """The tokens and the terms of each document."""
        texts = [document.whole for document in self.corpus]
        columns = self.vocabulary.encode(texts), terms(texts)
        tokens, words = (Sequences(column.values, column.offsets) for column in columns)
        return tokens, words

    def held(self) -> Judged | None:
        """The queries held, as a batch."""
        if not self.held_queries:
            return None
        known = [self._known(gains) for gains in self.held_queries.values()]
        relevant, answers = torch.zeros(2, len(known), max(map(len, known)))
        for row, found in enumerate(known):
            for column, (place, gain) in enumerate(found):
                relevant[row, column], answers[row, column] = place, gain
        batch = Columns(self._inputs([*self.held_queries])).batch(torch.arange(len(known)))
        return Judged(batch.inputs, relevant.long(), answers)

    def read_input(self, value: Any) -> SearchInput:
        read = read_fields(SearchInput, value)
        check_text(read.query, "query")
        return read

    def blank(self) -> SearchInput:
        return SearchInput(query="a")

    def length(self, given: SearchInput) -> int:
        """In characters, those aside that are likely to be cut off."""
        return max(1, min(len(given.query), LONG_TOKEN * self.vocabulary.max_length))

    def encode_inputs(self, inputs: Sequence[SearchInput]) -> Columns:
        return Columns(self._inputs([given.query for given in inputs]))

    def decode(self, outputs: Tensor) -> list[SearchPrediction]:
        return [
            SearchPrediction.model_construct(hits=[self._hit(*found) for found in hits])
            for hits in outputs.tolist()
        ]

    def _hit(self, place: float, score: float) -> Hit:
        id, title, text = self.corpus[int(place)]
        return Hit.model_construct(id=id, score=score, title=title, text=text)

    def given(self, examples: pl.DataFrame) -> Sequence[SearchParameters]:
        return [SearchParameters()] * examples.height

    def complete(
        self, predictions: list[Any], inputs: Sequence[SearchParameters]
    ) -> list[SearchPrediction]:
        """Predictions with as many hits as are wanted."""
        return [
            SearchPrediction.model_construct(hits=found.hits[: given.top_k])
            for found, given in zip(predictions, inputs, strict=True)
        ]


class Search(TextTask):
    """Find the documents that answer a query: the corpus is part of the model."""

    name: Literal["search"] = "search"
    architecture: Auto[OneOf[TextEncoder]] = Field(
        AUTO, description="What makes vectors of queries and documents."
    )
    temperature: float = Field(
        0.05, gt=0, le=1, description="What similarities are divided by in the loss."
    )
    hard_negatives: int = Field(
        1,
        ge=0,
        le=16,
        description="Documents that share words with a query and do not answer it, which each step learns "
        "to put behind those that do.",
    )
    only_documents: bool = Field(
        False,
        description="Learn nothing. Only add the documents of the data set to those of the base, where "
        "one with the same id takes the place of the one before.",
    )

    divides = False
    compares = True
    embeds = True
    input_type: ClassVar[type[BaseModel]] = SearchInput
    parameters_type: ClassVar[type[BaseModel]] = SearchParameters
    prediction_type: ClassVar[type[BaseModel]] = SearchPrediction
    codec_type = SearchCodec
    objective = Objective("ndcg_at_10")
    formats = CORPUS_FORMATS
    metrics = RANKING_METRICS

    # From an upload to a checked data set

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """The documents of all files are one corpus, which lies in the train split, before its queries."""
        found = read_each(files, lambda upload: read_corpus(upload, options))
        documents = together(found)
        queries = split_queries(found, documents, options)
        splits = {
            "train": pl.concat([documents, queries["train"]], how="diagonal"),
            **{name: frame for name, frame in queries.items() if name != "train"},
        }
        lengths = measure(pl.Series([document.whole for document in documents_of(documents)]))
        held = {name: frame for name, frame in queries.items() if name != "train" or frame.height}
        report = {
            "examples": {name: frame.height for name, frame in splits.items()},
            "documents": documents.height,
            "queries": {name: frame.height for name, frame in queries.items()},
            "relevant_per_query": {
                name: round(float(frame["relevant"].list.len().mean() or 0), 2)  # type: ignore[arg-type]
                for name, frame in held.items()
            },
            "unanswered_queries": sum(corpus.unanswered for corpus in found.values()),
            "empty_documents": int((documents["text"].str.strip_chars() == "").sum()),
            **lengths,
            **overlap({"train": queries["train"], **held}, ["query"]),
        }
        return Checked(splits, {"documents": documents.height, **lengths}, report)

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_corpus(upload, options).documents

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        raise NotImplementedError("`check` reads documents and queries at once")

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        queries = examples.filter(~is_document(examples))
        return [*(found.whole for found in documents_of(examples)), *queries["query"]]

    # From a request to what will be trained

    def choose_architecture(self, facts: Facts) -> Architecture:
        return BagOfEmbeddings()

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        return BytePairs(letters=PREFIX)

    @classmethod
    def share(
        cls, train: pl.LazyFrame, schema: Mapping[str, Any], share: float, seed: int
    ) -> Places:
        """All documents, and a share of the queries that are learned from."""
        documents: int = schema["documents"]
        queries = super().share(train.slice(documents), schema, share, seed)
        rows: Places = np.concatenate([np.arange(documents), documents + queries])
        return rows

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> SearchCodec:
        whole = train.collect()
        documents = {document.id: document for document in documents_of(whole)}
        if self.only_documents and isinstance(base, SearchCodec):
            documents = {document.id: document for document in base.corpus} | documents
        if not documents:
            raise Invalid(Problem(("train",), "no documents to search in", 0, "at least 1"))
        packed = json.dumps([*documents.values()], ensure_ascii=False).encode()
        return SearchCodec(
            vocabulary=self.learn_vocabulary(train, base),
            packed=b64encode(zlib.compress(packed)).decode(),
            held_queries=_held(whole, documents),
        )

    def build(self, codec: SearchCodec) -> Learner:
        vocabulary = codec.vocabulary
        return Retriever(
            self.architecture.build(vocabulary.size, vocabulary.max_length),
            codec,
            temperature=self.temperature,
            hard_negatives=self.hard_negatives,
            learns=not self.only_documents,
        )

    def same_outputs(self, codec: SearchCodec, base: Any) -> bool:
        return isinstance(base, SearchCodec)

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_rankings(_ranked(predictions, examples))

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_rankings(queries_of(examples), _ranked(predictions, examples))


def _ranked(predictions: Sequence[SearchPrediction], examples: pl.DataFrame) -> list[Ranked]:
    return [
        Ranked([hit.id for hit in found.hits], gains)
        for found, gains in zip(predictions, gains_of(examples), strict=True)
    ]


def _held(train: pl.DataFrame, documents: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Every fifth of the judged queries, where there are enough of them."""
    judged = {
        query: known
        for query, gains, alone in zip(
            queries_of(train), gains_of(train), is_document(train), strict=True
        )
        if not alone and (known := {id: gain for id, gain in gains.items() if id in documents})
    }
    held = dict(islice(judged.items(), 0, HELD_OF * MOST_HELD, HELD_OF))
    return held if len(judged) >= HELD_OF * FEWEST_HELD else {}
