"""Text classification: a label for each text."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel, Field
from torch import nn

from models.base import Architecture, Learner, Supervised, TextEncoder
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf
from models.text_cnn import TextCNN
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Upload, read_fields
from tasks.parts.column_types import to_text
from tasks.parts.columns import Columns
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
from tasks.parts.reading import LONG_TOKEN, TextTask
from tasks.parts.splits import LINE
from tasks.parts.tables import TABLE_FORMATS, check_mapping, read_table
from tasks.parts.texts import TextInput, check_present, check_text, choose_columns, measure
from tasks.parts.vocabulary import Vocabulary

USUAL = {
    "text": ("text", "sentence", "review", "content", "document", "comment", "utterance", "query"),
    "label": ("label", "class", "category", "target", "intent", "sentiment", "topic"),
}


class TextClassificationCodec(LabelCodec):
    """A vocabulary, and the labels."""

    vocabulary: Vocabulary

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        tokens = self.vocabulary.encode(examples["text"].fill_null(""))
        return Columns((tokens,), (self.encode_labels(examples["label"]),) if targets else ())

    def read_input(self, value: Any) -> TextInput:
        read = read_fields(TextInput, value)
        check_text(read.text, "text")
        return read

    def blank(self) -> TextInput:
        return TextInput(text="a")

    def length(self, given: TextInput) -> int:
        """In characters, those aside that are likely to be cut off."""
        return min(len(given.text), LONG_TOKEN * self.vocabulary.max_length)

    def encode_inputs(self, inputs: Sequence[TextInput]) -> Columns:
        return Columns((self.vocabulary.encode([given.text for given in inputs]),))


class TextClassification(TextTask):
    """Choose one label for each text: sentiment, topic, intent, language."""

    name: Literal["text-classification"] = "text-classification"
    architecture: Auto[OneOf[TextEncoder]] = Field(AUTO, description="What learns from the texts.")
    loss: OneOf[ClassificationLoss] = Field(
        CrossEntropy(), description="How far scores are from labels."
    )

    bulky = ("text",)
    input_type: ClassVar[type[BaseModel]] = TextInput
    prediction_type: ClassVar[type[BaseModel]] = LabelPrediction
    codec_type = TextClassificationCodec
    objective = Objective("accuracy")
    formats = TABLE_FORMATS
    metrics = CLASSIFICATION_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        check_mapping(options.column_mapping, list(USUAL))
        frame = read_table(upload, options.format)
        columns = choose_columns(frame, options.column_mapping, USUAL)
        kept = [name for name in (options.split.by, LINE) if name in frame.columns]
        examples = frame.select(pl.Series(name, frame[name]) for name in kept).with_columns(
            columns["text"], to_text(columns["label"])
        )
        check_present(examples, "text")
        return examples

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["text"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        labels = check_classes(splits, "label")
        frames = {name: frame.select("text", "label") for name, frame in splits.items()}
        empty = {n: int((f["text"].str.strip_chars() == "").sum()) for n, f in frames.items()}
        lengths = measure(frames["train"]["text"])
        report = {**balance(frames, "label"), "empty_texts": empty, **lengths}
        return frames, {"labels": labels, **lengths}, report

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return examples["text"].to_list()

    def choose_architecture(self, facts: Facts) -> Architecture:
        return TextCNN()

    def learn_codec(
        self,
        train: pl.LazyFrame,
        schema: Mapping[str, Any],
        base: TextClassificationCodec | None = None,
    ) -> TextClassificationCodec:
        labels, counts = count_labels(train.select("label").collect()["label"])
        vocabulary = self.learn_vocabulary(train.select("text"), base)
        return TextClassificationCodec(labels=labels, counts=counts, vocabulary=vocabulary)

    def build(self, codec: TextClassificationCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        head = nn.Linear(backbone.width, len(codec.labels))
        return Supervised(backbone, head, self.loss.build(codec.counts))

    def same_outputs(self, codec: TextClassificationCodec, base: Any) -> bool:
        return isinstance(base, TextClassificationCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, examples["label"].to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_labels(predictions, examples["label"].to_list())
