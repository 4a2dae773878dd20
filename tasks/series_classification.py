"""Series classification: a label for each series of measurements, of any length and number of channels."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, Field

from models.base import Architecture, Learner, SequenceEncoder
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.series import SeriesClassifier
from models.tcn import TCN
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload, read_fields
from tasks.parts.columns import Columns
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
from tasks.parts.sequences import (
    FORMATS,
    MAX_STEPS,
    Floats,
    as_series,
    channels_of,
    ragged_steps,
    read_series,
)

Number = Annotated[float, Field(allow_inf_nan=False)]
_USUAL_STEPS, _VECTORS = 4_096, 64


class SeriesInput(Plain):
    """A series of measurements."""

    series: list[Number | list[Number]] = Field(
        min_length=1,
        max_length=MAX_STEPS,
        description="The channels of each step, or plain numbers where there is one channel.",
        examples=[[[0.1, 9.8], [0.3, 9.7], [0.2, 9.9]]],
    )


class SeriesClassificationCodec(LabelCodec):
    """What channels are like, and how long series are read."""

    mean: list[float]
    deviation: list[float]
    max_length: int
    """Steps of a series that are read."""
    patch: int

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def vectors(self) -> int:
        """The most that the network reads."""
        return -(-self.max_length // self.patch)

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        series = [values.to_numpy().reshape(-1, self.channels) for values in examples["values"]]
        inputs = (self._steps(series),)
        return Columns(inputs, (self.encode_labels(examples["label"]),) if targets else ())

    def _steps(self, series: Sequence[Floats]) -> Any:
        mean, deviation = np.array(self.mean), np.array(self.deviation)
        scaled = [(steps[: self.max_length] - mean) / deviation for steps in series]
        return ragged_steps(scaled, self.max_length, self.channels)

    def read_input(self, value: Any) -> Floats:
        if isinstance(value, np.ndarray):
            return value
        read = read_fields(SeriesInput, value)
        try:
            steps = as_series(read.series)
        except Invalid as error:
            raise Invalid(*(p._replace(loc=("series", *p.loc)) for p in error.problems)) from None
        if steps.shape[1] != self.channels:
            found = steps.shape[1]
            raise Invalid(Problem(("series",), "wrong number of channels", found, self.channels))
        return steps

    def blank(self) -> dict[str, Any]:
        return {"series": [self.mean]}

    def length(self, given: Floats) -> int:
        return min(len(given), self.max_length)

    def encode_inputs(self, inputs: Sequence[Floats]) -> Columns:
        return Columns((self._steps(inputs),))


class SeriesClassification(Task):
    """Choose one label for each series: of movements, heartbeats, machines, light curves."""

    graph = "ragged"

    name: Literal["series-classification"] = "series-classification"
    architecture: Auto[OneOf[SequenceEncoder]] = Field(
        AUTO, description="The network that turns series into features."
    )
    loss: OneOf[ClassificationLoss] = Field(CrossEntropy(), description="What training minimises.")
    max_length: Auto[Annotated[int, Field(ge=1, le=MAX_STEPS)]] = Field(
        AUTO, description="Steps of a series that are read; what is behind them is cut off."
    )
    patch: Auto[Annotated[int, Field(ge=1, le=4_096)]] = Field(
        AUTO, description="Steps that the network reads at once, as one vector (Nie et al., 2023)."
    )

    embeds = True
    advised = True
    bulky = ("values",)
    input_type: ClassVar[type[BaseModel]] = SeriesInput
    prediction_type = LabelPrediction
    codec_type = SeriesClassificationCodec
    objective = Objective("accuracy")
    metrics = CLASSIFICATION_METRICS
    of_base = ("architecture", "max_length", "patch")
    formats: ClassVar[Mapping[str, str]] = FORMATS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_series(upload, options)

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "label"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["values"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        labels = check_classes(splits, "label")
        channels = {name: int(channels_of(frame)[0]) for name, frame in splits.items()}
        problems = [
            Problem((name,), "other channels than the train split", found, channels["train"])
            for name, found in channels.items()
            if found != channels["train"]
        ]
        if problems:
            raise Invalid(*problems)
        steps = splits["train"]["steps"]
        lengths = {
            "shortest": int(steps.min()),  # type: ignore[arg-type]
            "median": float(steps.median()),  # type: ignore[arg-type]
            "longest": int(steps.max()),  # type: ignore[arg-type]
        }
        schema = {"labels": labels, "channels": channels["train"], **lengths}
        report = {**balance(splits, "label"), "channels": channels["train"], "steps": lengths}
        frames = {n: frame.select("values", "steps", "label") for n, frame in splits.items()}
        return frames, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return TCN()

    def resolve(self, facts: Facts) -> Self:
        length = min(facts.schema["longest"], _USUAL_STEPS)
        if self.max_length != AUTO:
            length = self.max_length
        patch = max(1, round(min(length, facts.schema["median"]) / _VECTORS))
        update = {"max_length": length, "patch": patch if self.patch == AUTO else self.patch}
        return super().resolve(facts).model_copy(update=update)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> SeriesClassificationCodec:
        labels, counts = count_labels(train.select("label").collect()["label"])
        if isinstance(base, SeriesClassificationCodec) and base.channels == schema["channels"]:
            return base.model_copy(update={"labels": labels, "counts": counts})
        if base is not None:
            _check_base(base, schema["channels"], self.patch)
        mean, deviation = _moments(train.select("values"), schema["channels"])
        return SeriesClassificationCodec(
            labels=labels,
            counts=counts,
            mean=mean,
            deviation=deviation,
            max_length=self.max_length,
            patch=self.patch,
        )

    @property
    def probed(self) -> bool:
        return True

    def build(self, codec: SeriesClassificationCodec) -> Learner:
        backbone = self.architecture.over_vectors(codec.channels * codec.patch, codec.vectors)
        criterion = self.loss.build(codec.counts)
        return SeriesClassifier(backbone, len(codec.labels), criterion, codec.patch)

    def same_outputs(self, codec: SeriesClassificationCodec, base: Any) -> bool:
        return isinstance(base, SeriesClassificationCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, examples["label"].to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_labels(predictions, examples["label"].to_list())


def _check_base(base: Any, channels: int, patch: int) -> None:
    """Raises Invalid for a base whose network reads something else."""
    found = getattr(base, "channels", None), getattr(base, "patch", None)
    if found != (channels, patch):
        allowed = f"a model of {channels} channels, in patches of {patch}"
        raise Invalid(Problem(("base",), "does not read series as this task does", found, allowed))


def _moments(train: pl.LazyFrame, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, over all steps."""
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for piece in pieces(train):
        steps = piece["values"].explode(empty_as_null=False).to_numpy().reshape(-1, channels)
        count, total = count + len(steps), total + steps.sum(0)
        squares = squares + (steps**2).sum(0)
    mean = total / max(1, count)
    spread = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0))
    return mean.tolist(), np.where(spread > 1e-9 * np.abs(mean), spread, 1.0).tolist()
