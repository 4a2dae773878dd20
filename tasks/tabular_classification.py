"""Tabular classification: a label for each row of a table."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel, Field

from models.base import Architecture, Learner, TableLearner, Target
from models.mlp import MLP
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.column_types import to_text
from tasks.parts.columns import Dense
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
from tasks.parts.rows import TableOptions, describe_rows, read_rows, target_of, truth
from tasks.parts.splits import LINE
from tasks.parts.tables import TABLE_FORMATS
from tasks.parts.tabular import Row, TabularCodec, learn_columns


class TabularClassificationCodec(LabelCodec, TabularCodec):
    """Columns of the table, and the labels of its target."""

    def encode_target(self, values: pl.Series) -> Dense:
        return self.encode_labels(to_text(values))


class TabularClassification(Task):
    """Choose one label for each row of a table of numbers, categories and dates."""

    graph = "fixed"

    name: Literal["tabular-classification"] = "tabular-classification"
    architecture: Auto[OneOf[TableLearner]] = Field(AUTO, description="What learns from the rows.")
    loss: OneOf[ClassificationLoss] = Field(
        CrossEntropy(), description="How far scores are from labels."
    )

    embeds = True
    advised = True
    input_type: ClassVar[type[BaseModel]] = Row
    prediction_type: ClassVar[type[BaseModel]] = LabelPrediction
    codec_type = TabularClassificationCodec
    options_type = TableOptions
    objective = Objective("accuracy")
    formats = TABLE_FORMATS
    metrics = CLASSIFICATION_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_rows(upload, options)

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return target_of(examples, options)

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return str(schema["target"])

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        target = target_of(splits["train"], options)
        found = describe_rows(splits, target, options)
        frames = {
            name: frame.with_columns(to_text(frame[target])) for name, frame in found.splits.items()
        }
        labels = check_classes(frames, target)
        schema = found.schema(target, labels=labels)
        report = {**found.report, **balance(frames, target)}
        return {name: frame.drop(LINE) for name, frame in frames.items()}, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return MLP()

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: TabularCodec | None = None
    ) -> TabularClassificationCodec:
        rows = train.collect()
        labels, counts = count_labels(truth(rows))
        return TabularClassificationCodec(
            labels=labels, counts=counts, **learn_columns(rows, schema, base)
        )

    @property
    def probed(self) -> bool:
        return True

    def build(self, codec: TabularClassificationCodec) -> Learner:
        target = Target("classes", len(codec.labels), self.loss.build(codec.counts))
        learner: Learner = self.architecture.build(codec.width, codec.cardinalities, target)
        return learner

    def same_outputs(
        self, codec: TabularClassificationCodec, base: TabularClassificationCodec
    ) -> bool:
        return codec.labels == base.labels

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, truth(examples).to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_labels(predictions, truth(examples).to_list())
