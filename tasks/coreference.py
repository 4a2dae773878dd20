"""Coreference: which places of a document speak of the same person, place or thing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.base import SENTENCE_END, UNKNOWN, Architecture, Learner, TokenEncoder
from models.lstm import LSTM
from models.parts.coreference import MentionRanker
from models.parts.options import AUTO, Auto, OneOf, Plain
from tasks.base import Codec, DatasetOptions, Facts, Metrics, Objective, Upload, read_fields
from tasks.parts import clusters as scoring
from tasks.parts.clusters import CLUSTER_METRICS
from tasks.parts.columns import Columns, Dense, Ragged
from tasks.parts.documents import (
    DOCUMENT_FORMATS,
    ROLES,
    Mention,
    check_mentions,
    check_sentences,
    read_documents,
)
from tasks.parts.problems import Invalid, Problem
from tasks.parts.reading import MaxLength, TextTask
from tasks.parts.tables import check_mapping
from tasks.parts.texts import spread
from tasks.parts.vocabulary import BytePairs, Tokenizer, Vocabulary

MAX_MENTIONS = 4_000
"""Mentions that may be given with one document."""
SEGMENT = 128
WIDEST = 30
WIDTH = 64
WORST = 10
_WORD_TOKENS = 16
"""Tokens of one word that are read."""

Span = Annotated[
    tuple[int, int, int],
    Field(description="Sentence, first token, and the token behind the last; all from 0."),
]


class DocumentInput(Plain):
    """A document, and perhaps its mentions."""

    sentences: list[list[str]] = Field(
        description="Its sentences, each a list of tokens.",
        examples=[[["Ann", "left", "."], ["She", "ran", "."]]],
    )
    mentions: list[Span] | None = Field(
        None,
        max_length=MAX_MENTIONS,
        description="The mentions to put into clusters, each as sentence, first token and the token behind the last, "
        "from 0; they are found if left out.",
        examples=[[[0, 0, 1], [1, 0, 1]]],
    )


class ClustersPrediction(Plain):
    """Clusters of mentions of the same thing."""

    clusters: list[list[Span]] = Field(
        description="Mentions of each thing in the order of the document, and clusters in that of their first ones. "
        "A mention is its sentence, its first token and the token behind its last, from 0."
    )
    scores: list[list[float]] = Field(
        description="How likely each mention is one, and rightly linked to those before it; the first one of "
        "a cluster, how likely it is the first."
    )


class CoreferenceCodec(Codec):
    """A vocabulary, and what of mentions is asked for."""

    vocabulary: Vocabulary
    mentions: Literal["found", "given"]
    """Whether the mentions of a data set's examples are given, or only what is to be found."""
    singletons: bool
    """Whether mentions count that nothing else refers to."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        documents = examples["sentences"].to_list()
        true = [_places(*row) for row in zip(documents, examples["clusters"], strict=True)]
        asked = self.mentions == "given"
        given = [[place[:2] for place in places] if asked else [] for places in true]
        inputs = self._inputs(documents, given, [asked] * len(documents))
        return Columns(inputs, (_rows(true, 3),) if targets else ())

    def read_input(self, value: Any) -> DocumentInput:
        read = read_fields(DocumentInput, value)
        problems = check_sentences(read.sentences, "sentences")
        if not problems:
            problems = check_mentions(read.mentions or (), read.sentences, "mentions")
        if problems:
            raise Invalid(*problems)
        return read

    def blank(self) -> DocumentInput:
        return DocumentInput(sentences=[["a"]])

    def length(self, given: DocumentInput) -> int:
        """In tokens."""
        return sum(map(len, given.sentences))

    def encode_inputs(self, inputs: Sequence[DocumentInput]) -> Columns:
        given = [
            [place[:2] for place in _places(read.sentences, [read.mentions or ()])]
            for read in inputs
        ]
        asked = [read.mentions is not None for read in inputs]
        return Columns(self._inputs([read.sentences for read in inputs], given, asked))

    def decode(self, outputs: Tensor) -> list[ClustersPrediction]:
        return [self._decode(rows.tolist()) for rows in outputs]

    def _decode(self, rows: list[list[float]]) -> ClustersPrediction:
        home: list[int] = []
        clusters: list[list[Mention]] = []
        scores: list[list[float]] = []
        for sentence, first, behind, likely, opener, sure in rows:
            if sentence < 0:
                break
            if opener < 0:
                home.append(len(clusters))
                clusters.append([])
                scores.append([])
            else:
                home.append(home[int(opener)])
            clusters[home[-1]].append((int(sentence), int(first), int(behind)))
            scores[home[-1]].append(likely * sure)
        kept = [place for place, c in enumerate(clusters) if self.singletons or len(c) > 1]
        return ClustersPrediction.model_construct(
            clusters=[clusters[place] for place in kept], scores=[scores[place] for place in kept]
        )

    def _inputs(
        self,
        documents: Sequence[Sequence[Sequence[str]]],
        given: Sequence[Sequence[Sequence[int]]],
        asked: Sequence[bool],
    ) -> tuple[Dense | Ragged, ...]:
        """The columns that `MentionRanker` reads."""
        distinct = dict.fromkeys(word for d in documents for sentence in d for word in sentence)
        # Whether a sentence ends with a word is known here, and not for the vocabulary to guess.
        spaced = (self.vocabulary.before_words + word for word in distinct)
        ids = {
            word: [i for i in found if i != SENTENCE_END][:_WORD_TOKENS] or [UNKNOWN]
            for word, found in zip(distinct, self.vocabulary.ids(spaced), strict=True)
        }
        read = [_segmented(document, ids, self.vocabulary.max_length) for document in documents]
        return (
            _rows([tokens for tokens, _ in read], 2),
            _rows([words for _, words in read], 4),
            _rows(given, 2),
            Dense(torch.tensor(asked, dtype=torch.int64)),
        )


def _segmented(
    document: Sequence[Sequence[str]], ids: Mapping[str, Sequence[int]], longest: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
    """The tokens and words of a document, as `MentionRanker` reads them.

    A segment has `longest` tokens at most, and as many whole sentences as fit.
    """
    tokens: list[tuple[int, int]] = []
    words: list[tuple[int, int, int, int]] = []
    segment = used = 0
    for number, sentence in enumerate(document):
        size = sum(len(ids[word]) for word in sentence)
        for place, word in enumerate(sentence):
            needed = len(ids[word]) if place else min(size, longest)
            if used and used + needed > longest:
                segment, used = segment + 1, 0
            words.append((len(tokens), len(tokens) + len(ids[word]) - 1, number, place))
            tokens += [(token, segment) for token in ids[word]]
            used += len(ids[word])
    return tokens, words


def _places(
    sentences: Sequence[Sequence[str]], clusters: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, int, int]]:
    """Mentions in the order of the document: first and last words, counted through it, and cluster."""
    starts = [0, *accumulate(map(len, sentences))]
    return sorted(
        (starts[sentence] + first, starts[sentence] + behind - 1, number)
        for number, cluster in enumerate(clusters)
        for sentence, first, behind in cluster
    )


def _rows(sequences: Sequence[Sequence[Sequence[int]]], width: int) -> Ragged:
    """A column of sequences of so many numbers each."""
    lengths = torch.tensor([0, *map(len, sequences)])
    values = np.array([row for rows in sequences for row in rows], dtype=np.int64)
    return Ragged(torch.from_numpy(values.reshape(-1, width)), lengths.cumsum(0))


class Coreference(TextTask):
    """Find who or what a document speaks of, and all the places where it does."""

    name: Literal["coreference"] = "coreference"
    architecture: Auto[OneOf[TokenEncoder]] = Field(
        AUTO, description="What learns from the tokens."
    )
    max_length: Auto[MaxLength] = Field(
        AUTO,
        description="Tokens that are read at once: documents are cut into segments of whole sentences. "
        "A base brings its own.",
    )
    mentions: Auto[Literal["found", "given"]] = Field(
        AUTO,
        description="Whether metrics are of clusters among mentions that the model `found`, or among the true ones, "
        "which are `given`. A model answers both kinds of requests in either case. `auto`: given where the data marks "
        "mentions that stand alone too; elsewhere to give them would tell what is to be learned.",
    )
    widest: Auto[Annotated[int, Field(ge=1, le=100)]] = Field(
        AUTO, description="Words of the longest mentions that are found. A base brings its own."
    )
    window: int = Field(
        60, ge=1, le=1_000, description="How many mentions back an antecedent may be."
    )
    width: Auto[Annotated[int, Field(ge=1, le=1_024)]] = Field(
        AUTO, description="Width of what mentions are compared by. A base brings its own."
    )
    dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of what mentions are compared by that is dropped in training.",
    )

    of_base = (*TextTask.of_base, "widest", "width")
    divides = False
    bulky = ("sentences",)
    input_type: ClassVar[type[BaseModel]] = DocumentInput
    prediction_type: ClassVar[type[BaseModel]] = ClustersPrediction
    codec_type = CoreferenceCodec
    objective = Objective("conll_f1")
    formats = DOCUMENT_FORMATS
    metrics = CLUSTER_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        check_mapping(options.column_mapping, ROLES)
        kept = [options.split.by] if options.split.by else []
        return read_documents(upload, options.format, options.column_mapping, kept)

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["sentences"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames = {name: f.select("document", "sentences", "clusters") for name, f in splits.items()}
        report = {name: _measure(frame) for name, frame in frames.items()}
        train = report["train"]
        if not train["links"]:
            allowed = "clusters of two or more mentions"
            raise Invalid(
                Problem(("train", "clusters"), "nothing is mentioned twice", None, allowed)
            )
        schema = {"singletons": train["singletons"] > 0, "mention_words": train["mention_words"]}
        return frames, schema, {"documents": report}

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        documents = examples["sentences"].to_list()
        return [" ".join(sentence) for document in documents for sentence in document]

    def choose_architecture(self, facts: Facts) -> Architecture:
        return LSTM(dropout=0.3)

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        return BytePairs()

    def most_tokens(self, facts: Facts) -> int:
        return SEGMENT

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        p98 = facts.schema["mention_words"]["p98"]
        chosen = {
            "mentions": "given" if facts.schema["singletons"] else "found",
            "widest": min(WIDEST, p98),
            "width": WIDTH,
        }
        return task.model_copy(
            update={name: value for name, value in chosen.items() if getattr(task, name) == AUTO}
        )

    def defaults(self, facts: Facts) -> dict[str, Any]:
        # A document is many mentions, each of which is learned from. Ten passes over 60 documents are enough.
        return {"batch_size": 1, "epochs": max(5, min(30, round(600 / facts.examples)))}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> CoreferenceCodec:
        vocabulary = self.learn_vocabulary(train.select("sentences"), base)
        return CoreferenceCodec(
            vocabulary=vocabulary, mentions=self.mentions, singletons=schema["singletons"]
        )

    def build(self, codec: CoreferenceCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        return MentionRanker(backbone, self.width, self.widest, self.window, self.dropout)

    def same_outputs(self, codec: CoreferenceCodec, base: CoreferenceCodec) -> bool:
        return True

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return scoring.metrics(scoring.add(_count(predictions, examples)))

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        """The metrics; precision and recall of each measure; who is taken for new; and the worst documents."""
        counted = list(_count(predictions, examples))
        total = scoring.add(counted)
        each = [scoring.metrics(counts) for counts in counted]
        worst = sorted(range(len(each)), key=lambda row: each[row]["conll_f1"])[:WORST]
        return {
            **scoring.metrics(total),
            "mentions": self.mentions,
            "measures": {
                name: {"precision": c.precision, "recall": c.recall, "f1": c.f1}
                for name, c in total.items()
            },
            "confusion": _confusion(predictions, examples),
            "worst": [
                {"row": row, "document": examples["document"][row], **each[row]} for row in worst
            ],
        }


def _count(
    predictions: Sequence[ClustersPrediction], examples: pl.DataFrame
) -> Iterator[dict[str, scoring.Counts]]:
    for prediction, true in zip(predictions, examples["clusters"].to_list(), strict=True):
        yield scoring.count(_hashable(true), _hashable(prediction.clusters))


def _hashable(clusters: Sequence[Sequence[Sequence[int]]]) -> list[list[tuple[int, ...]]]:
    return [[tuple(mention) for mention in cluster] for cluster in clusters]


def _confusion(predictions: Sequence[ClustersPrediction], examples: pl.DataFrame) -> dict[str, Any]:
    """True mentions (rows) as what they were predicted (columns): new, mentioned again, or no mention."""
    counts = Counter[tuple[int, int]]()
    for prediction, true in zip(predictions, examples["clusters"].to_list(), strict=True):
        found = _again(prediction.clusters)
        counts.update((again, found.get(m, 2)) for m, again in _again(true).items())
    cells = [[counts[row, column] for column in range(3)] for row in range(2)]
    return {"labels": ["new", "again", "missed"], "counts": [*cells, [0, 0, 0]]}


def _again(clusters: Sequence[Sequence[Sequence[int]]]) -> dict[tuple[int, ...], int]:
    """Whether each mention is a later one of its cluster."""
    return {tuple(m): int(at > 0) for cluster in clusters for at, m in enumerate(cluster)}


def _measure(frame: pl.DataFrame) -> dict[str, Any]:
    """How much there is in a split."""
    documents, clusters = frame["sentences"].to_list(), frame["clusters"].to_list()
    words = [sum(map(len, document)) for document in documents]
    sizes = [len(cluster) for of in clusters for cluster in of]
    spans = [m for of in clusters for cluster in of for m in cluster]
    return {
        "documents": len(documents),
        "sentences": sum(map(len, documents)),
        "words": sum(words),
        "longest_document": max(words),
        "mentions": len(spans),
        "clusters": len(sizes),
        "links": sum(size - 1 for size in sizes),
        "singletons": sizes.count(1),
        "crossing": sum(_crossing(of) for of in clusters),
        "mention_words": spread([behind - first for _, first, behind in spans]),
    }


def _crossing(clusters: Sequence[Sequence[Sequence[int]]]) -> int:
    """How many mentions begin within another one and end behind it."""
    spans = sorted(list(m) for cluster in clusters for m in cluster)
    crossing, opened = 0, list[list[int]]()
    for sentence, first, behind in spans:
        opened = [span for span in opened if span[0] == sentence and span[2] > first]
        crossing += any(span[1] < first and span[2] < behind for span in opened)
        opened.append([sentence, first, behind])
    return crossing
