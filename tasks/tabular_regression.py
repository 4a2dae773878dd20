"""Tabular regression: a number for each row of a table."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.base import Architecture, Learner, TableLearner, Target
from models.mlp import MLP
from models.parts.losses import Euclidean, RegressionLoss
from models.parts.options import AUTO, Auto, OneOf, Plain
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.column_types import ColumnType, convert
from tasks.parts.columns import Dense
from tasks.parts.problems import Invalid, Problem
from tasks.parts.rows import TableOptions, describe_rows, read_rows, target_of, truth
from tasks.parts.splits import LINE, line_of
from tasks.parts.tables import TABLE_FORMATS
from tasks.parts.tabular import Row, TabularCodec, learn_columns


class NumberPrediction(Plain):
    """The predicted number."""

    value: float = Field(description="In the unit of the target column.")


class TabularRegressionCodec(TabularCodec):
    """Columns of the table, and the scale of its target."""

    target: str
    mean: float
    deviation: float

    def encode_target(self, values: pl.Series) -> Dense:
        """Standardised values (N, 1)."""
        floats = values.cast(pl.Float64).to_numpy()
        scaled = ((floats - self.mean) / self.deviation).astype(np.float32)
        return Dense(torch.from_numpy(scaled)[:, None])

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from standardised values (B, 1)."""
        values = outputs[:, 0].double() * self.deviation + self.mean
        return [NumberPrediction.model_construct(value=value) for value in values.tolist()]


class TabularRegression(Task):
    """Predict a number for each row of a table of numbers, categories and dates."""

    graph = "fixed"

    name: Literal["tabular-regression"] = "tabular-regression"
    architecture: Auto[OneOf[TableLearner]] = Field(AUTO, description="What learns from the rows.")
    loss: OneOf[RegressionLoss] = Field(
        Euclidean(), description="How far predictions are from the numbers."
    )

    embeds = True
    advised = True
    input_type: ClassVar[type[BaseModel]] = Row
    prediction_type: ClassVar[type[BaseModel]] = NumberPrediction
    codec_type = TabularRegressionCodec
    options_type = TableOptions
    objective = Objective("rmse", maximise=False)
    formats = TABLE_FORMATS
    metrics: ClassVar[Mapping[str, str]] = {
        "rmse": "Root of the mean squared error, in the unit of the target; lower is better.",
        "mae": "Mean absolute error, in the unit of the target; lower is better.",
        "r2": "Share of the target's variance that is explained; 0 is as good as its mean.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        frame = read_rows(upload, options)
        return frame.with_columns(_numbers(frame, target_of(frame, options)))

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        target = target_of(splits["train"], options)
        found = describe_rows(splits, target, options)
        values = truth(found.splits["train"])
        if values.n_unique() < 2:
            raise Invalid(
                Problem(("train", target), "one value only", values[0], "numbers that vary")
            )
        report = {**found.report, "target_values": _summary(values)}
        frames = {name: frame.drop(LINE) for name, frame in found.splits.items()}
        return frames, found.schema(target), report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return MLP()

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> TabularRegressionCodec:
        rows = train.collect()
        values = truth(rows).cast(pl.Float64).to_numpy()
        scale = {"mean": float(values.mean()), "deviation": float(values.std()) or 1.0}
        if base is not None and base.target == schema["target"]:
            scale = {"mean": base.mean, "deviation": base.deviation}
        return TabularRegressionCodec(
            target=schema["target"], **scale, **learn_columns(rows, schema, base)
        )

    @property
    def probed(self) -> bool:
        return True

    def build(self, codec: TabularRegressionCodec) -> Learner:
        target = Target("values", 1, self.loss.build())
        learner: Learner = self.architecture.build(codec.width, codec.cardinalities, target)
        return learner

    def same_outputs(self, codec: TabularRegressionCodec, base: TabularRegressionCodec) -> bool:
        mine, its = (codec.mean, codec.deviation), (base.mean, base.deviation)
        return codec.target == base.target and mine == its

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        wanted = truth(examples).cast(pl.Float64).to_numpy()
        errors = np.array([prediction.value for prediction in predictions]) - wanted
        squared = float(np.mean(errors**2))
        return {
            "rmse": squared**0.5,
            "mae": float(np.abs(errors).mean()),
            "r2": 1 - squared / (float(wanted.var()) or 1.0),
        }


def _numbers(frame: pl.DataFrame, target: str) -> pl.Series:
    """The target as numbers. Raises Invalid, naming every line where it is none."""
    values, bad = convert(frame[target], ColumnType(name=target, type="numeric"))
    problems = [
        Problem(
            ("line", line_of(frame, row), target),
            "the target is not a number" if bad[row] else "the target is missing",
            str(frame[target][row]),
            "a finite number",
        )
        for row in values.is_null().arg_true()[: Invalid.LIMIT]
    ]
    if problems:
        raise Invalid(*problems)
    return values


def _summary(values: pl.Series) -> dict[str, float]:
    numbers = values.cast(pl.Float64).to_numpy()
    return {
        "mean": float(numbers.mean()),
        "deviation": float(numbers.std()),
        "least": float(numbers.min()),
        "most": float(numbers.max()),
    }
