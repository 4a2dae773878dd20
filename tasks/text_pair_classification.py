"""Text pair classification: a label for two texts, such as entailment, paraphrase or a discourse relation."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, Field

from models.bag_of_embeddings import BagOfEmbeddings
from models.base import Architecture, Learner, TextEncoder
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.matching import JoinedHead, JoinedPairLearner, Matching, PairBackbone, PairLearner
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.pretrained_text import PretrainedText
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Upload, read_fields
from tasks.parts.column_types import to_text
from tasks.parts.columns import Columns, Dense
from tasks.parts.examples import pieces
from tasks.parts.labels import (
    CLASSIFICATION_METRICS,
    LabelCodec,
    LabelPrediction,
    balance,
    check_classes,
    count_labels,
    evaluate_labels,
    score_labels,
)
from tasks.parts.problems import Invalid, Problem
from tasks.parts.reading import LONG_TOKEN, TextTask
from tasks.parts.splits import LINE, overlap
from tasks.parts.tables import TABLE_FORMATS, check_mapping, pick_column, read_table
from tasks.parts.texts import check_present, check_text, choose_columns, measure
from tasks.parts.vocabulary import MAX_TEXT, Vocabulary

USUAL = {
    "text_a": ("text_a", "premise", "sentence1", "question1", "sentence_a", "text1", "query"),
    "text_b": ("text_b", "hypothesis", "sentence2", "question2", "sentence_b", "text2", "passage"),
    "label": ("label", "gold_label", "relation", "class", "entailment_judgment", "is_duplicate"),
}
DIRECTIONS = ("direction", "dir")
"""Usual names of the column for the direction, which may be missing."""
MOST_DIRECTIONS = 100
ENOUGH_TO_ALIGN = 50_000
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class PairInput(Plain):
    """Two texts."""

    text_a: Text = Field(
        description="The first text: premise, question, earlier span.",
        examples=["A man plays the flute."],
    )
    text_b: Text = Field(
        description="The second text: hypothesis, answer, later span.",
        examples=["Nobody plays the flute."],
    )
    direction: str | None = Field(
        None,
        max_length=1_000,
        description="Which way the relation goes, as the data set's column of that name says it, if it has one.",
    )


class TextPairCodec(LabelCodec):
    """A vocabulary, how many texts have each of its tokens, directions, and the labels."""

    vocabulary: Vocabulary
    texts: int
    """Texts that were counted: two for each example of the train split."""
    occurs: list[int]
    """How many of these have the token of each id."""
    directions: list[str]

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        return Columns(
            self._inputs(examples["text_a"], examples["text_b"], examples["direction"]),
            (self.encode_labels(examples["label"]),) if targets else (),
        )

    def _inputs(
        self, first: Sequence[str] | pl.Series, second: Sequence[str] | pl.Series, ways: pl.Series
    ) -> tuple[Any, ...]:
        """Tokens of both texts, and directions from 1, those that are missing or never seen 0."""
        codes = ways.replace_strict(
            self.directions,
            list(range(1, len(self.directions) + 1)),
            default=0,
            return_dtype=pl.Int64,
        )
        return (
            self.vocabulary.encode(first),
            self.vocabulary.encode(second),
            Dense(torch.from_numpy(codes.fill_null(0).to_numpy(writable=True))),
        )

    def read_input(self, value: Any) -> PairInput:
        read = read_fields(PairInput, value)
        problems: list[Problem] = []
        for name, text in read:
            try:
                check_text(text or "", name)
            except Invalid as error:
                problems += error.problems
        if not problems and read.direction is not None and read.direction not in self.directions:
            allowed = self.directions or "none: the model learned from pairs without one"
            problems.append(Problem(("direction",), "no such one", read.direction, allowed))
        if problems:
            raise Invalid(*problems)
        return read

    def blank(self) -> PairInput:
        return PairInput(text_a="a", text_b="a")

    def length(self, given: PairInput) -> int:
        """In characters, those aside that are likely to be cut off."""
        most = LONG_TOKEN * self.vocabulary.max_length
        return min(len(given.text_a), most) + min(len(given.text_b), most)

    def encode_inputs(self, inputs: Sequence[PairInput]) -> Columns:
        ways = pl.Series("direction", [given.direction for given in inputs], pl.String)
        first, second = zip(*((given.text_a, given.text_b) for given in inputs), strict=True)
        return Columns(self._inputs(first, second, ways))


class TextPairClassification(TextTask):
    """Choose one label for two texts: inference, paraphrase, discourse relation."""

    graph = "ragged"

    name: Literal["text-pair-classification"] = "text-pair-classification"
    architecture: Auto[OneOf[TextEncoder]] = Field(AUTO, description="What learns from each text.")
    loss: OneOf[ClassificationLoss] = Field(
        CrossEntropy(), description="How far scores are from labels."
    )
    alignment: Auto[bool] = Field(
        AUTO,
        description="Compare each token with what is most like it in the other text. That needs many examples: "
        "`auto` does from 50,000 on. Pretrained architectures read both texts as one, and align them by themselves.",
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of what the comparison finds dropped in training."
    )

    of_base = (*TextTask.of_base, "alignment")
    embeds = True
    advised = True
    bulky = ("text_a", "text_b")
    input_type: ClassVar[type[BaseModel]] = PairInput
    prediction_type: ClassVar[type[BaseModel]] = LabelPrediction
    codec_type = TextPairCodec
    objective = Objective("accuracy")
    formats = TABLE_FORMATS
    metrics = CLASSIFICATION_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        check_mapping(options.column_mapping, [*USUAL, "direction"])
        frame = read_table(upload, options.format)
        columns = choose_columns(frame, options.column_mapping, USUAL)
        way = pick_column(frame, "direction", options.column_mapping, DIRECTIONS)
        ways = (
            to_text(frame[way])
            if way
            else pl.repeat(None, frame.height, dtype=pl.String, eager=True)
        )
        kept = [name for name in (options.split.by, LINE) if name in frame.columns]
        examples = frame.select(pl.Series(name, frame[name]) for name in kept).with_columns(
            columns["text_a"],
            columns["text_b"],
            ways.replace("", None).alias("direction"),
            to_text(columns["label"]),
        )
        check_present(examples, "text_a", "text_b")
        return examples

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "label"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["text_a", "text_b"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        labels = check_classes(splits, "label")
        directions = _directions(splits["train"])
        frames = {
            name: frame.select("text_a", "text_b", "direction", "label")
            for name, frame in splits.items()
        }
        lengths = measure(pl.concat([frames["train"]["text_a"], frames["train"]["text_b"]]))
        report = {
            **balance(frames, "label"),
            "empty_texts": {name: _empty(frame) for name, frame in frames.items()},
            "directions": directions,
            **lengths,
            # What is learned of a first text tells of its other pairs, too: better split by it.
            "overlap_of_text_a": overlap(frames, ["text_a"])["overlap"],
        }
        return frames, {"labels": labels, "directions": directions, **lengths}, report

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return [*examples["text_a"], *examples["text_b"]]

    def choose_architecture(self, facts: Facts) -> Architecture:
        return BagOfEmbeddings()

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        if isinstance(task.architecture, PretrainedText):
            if task.alignment is True:
                message = "an architecture that is pretrained aligns texts by itself"
                raise Invalid(Problem(("task", "alignment"), message, True, [AUTO, False]))
            return task.model_copy(update={"alignment": False})
        if task.alignment == AUTO:
            task = task.model_copy(update={"alignment": facts.examples >= ENOUGH_TO_ALIGN})
        return task

    def learn_codec(
        self,
        train: pl.LazyFrame,
        schema: Mapping[str, Any],
        base: Any | None = None,
    ) -> TextPairCodec:
        labels, counts = count_labels(train.select("label").collect()["label"])
        both = train.select("text_a", "text_b")
        vocabulary = self.learn_vocabulary(both, base)
        texts, occurs = self._count(both, vocabulary)
        return TextPairCodec(
            labels=labels,
            counts=counts,
            vocabulary=vocabulary,
            texts=texts,
            occurs=occurs,
            directions=schema["directions"],
        )

    def _count(self, both: pl.LazyFrame, vocabulary: Vocabulary) -> tuple[int, list[int]]:
        """How many texts there are, and how many of them have each token."""
        texts, occurs = 0, np.zeros(vocabulary.size, dtype=np.int64)
        for piece in pieces(both):
            for ids in vocabulary.ids(self.texts(piece)):
                occurs[list(set(ids))] += 1
                texts += 1
        return texts, occurs.tolist()

    @property
    def probed(self) -> bool:
        # Others are compared token by token.
        return isinstance(self.architecture, PretrainedText)

    def build(self, codec: TextPairCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        directions, labels = len(codec.directions), len(codec.labels)
        criterion = self.loss.build(codec.counts)
        if isinstance(backbone, PairBackbone):
            joined = JoinedHead(backbone.width, directions, labels, self.dropout)
            return JoinedPairLearner(backbone, joined, criterion)
        rarity = torch.log(max(1, codec.texts) / torch.tensor(codec.occurs).clamp(min=1).float())
        head = Matching(backbone.width, rarity, directions, labels, self.dropout, self.alignment)
        return PairLearner(backbone, head, criterion)

    def same_outputs(self, codec: TextPairCodec, base: Any) -> bool:
        return (
            isinstance(base, TextPairCodec)
            and codec.labels == base.labels
            and codec.directions == base.directions
        )

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, examples["label"].to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_labels(predictions, examples["label"].to_list())


def _directions(train: pl.DataFrame) -> list[str]:
    """The directions by name. Raises Invalid when there are so many that they cannot be such."""
    found = sorted(train["direction"].drop_nulls().unique())
    if len(found) > MOST_DIRECTIONS:
        allowed = f"at most {MOST_DIRECTIONS} different ones"
        raise Invalid(Problem(("train", "direction"), "too many directions", len(found), allowed))
    return found


def _empty(frame: pl.DataFrame) -> int:
    """Pairs with a text that says nothing."""
    blank = [frame[name].str.strip_chars() == "" for name in ("text_a", "text_b")]
    return int((blank[0] | blank[1]).sum())
