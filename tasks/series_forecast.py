"""Series forecast: the next values of a series of numbers, from its past and that of others."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, Field

from models.base import Architecture, Learner, SequenceEncoder
from models.gru import GRU
from models.parts.losses import Absolute, RegressionLoss
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, Auto, OneOf
from models.parts.series import Forecaster, ForecastHead, ForecastLoss
from tasks.base import Checked, DatasetOptions, Facts, Metrics, Objective, Task, Upload, read_each
from tasks.parts.forecasts import (
    FORECAST_METRICS,
    ForecastCodec,
    ForecastInput,
    ForecastParameters,
    ForecastPrediction,
    errors_of,
    point_metrics,
)
from tasks.parts.problems import Invalid, Problem
from tasks.parts.shares import latest
from tasks.parts.splits import Places, overlap
from tasks.parts.tables import TABLE_FORMATS
from tasks.parts.timelines import MAX_CONTEXT, SeriesOptions, by_time, read_rows, variables
from tasks.parts.times import Step
from tasks.parts.windows import (
    Size,
    Variable,
    best_start,
    lines_of,
    moments,
    rows_of,
    size_for,
    step_of,
    summary,
    windows,
)

_VECTORS = 14
"""Patches that a network reads of each window, about: more take longer and tell no more."""


class SeriesForecast(Task):
    """Forecast the next values of a series: demand, load, prices, temperatures.

    Splits are cut by time alone. What is judged are forecasts of the whole horizon, one after the other.
    """

    graph = "fixed"

    name: Literal["series-forecast"] = "series-forecast"
    architecture: Auto[OneOf[SequenceEncoder]] = Field(
        AUTO, description="The network that reads the past, beside a linear model of it."
    )
    loss: OneOf[RegressionLoss] = Field(
        Absolute(),
        description="How far forecasts are from what came; `mae` forecasts the median, `mse` the mean. That of the "
        "interval is added to it.",
    )
    interval: float = Field(
        0.8, gt=0, lt=1, description="Share of the values to come that `lower` and `upper` enclose."
    )
    context: Auto[Annotated[int, Field(ge=2, le=MAX_CONTEXT)]] = Field(
        AUTO,
        description="Steps of the past that are looked at; at most as many as the data set was cut with.",
    )
    patch: Auto[Annotated[int, Field(ge=1, le=MAX_CONTEXT)]] = Field(
        AUTO, description="Steps that the network reads at once, as one vector (Nie et al., 2023)."
    )

    bulky = ("history", "known")
    input_type: ClassVar[type[BaseModel]] = ForecastInput
    parameters_type = ForecastParameters
    prediction_type = ForecastPrediction
    codec_type = ForecastCodec
    options_type = SeriesOptions
    objective = Objective("mase", maximise=False)
    metrics = FORECAST_METRICS
    of_base = ("architecture", "context", "patch")
    formats: ClassVar[Mapping[str, str]] = {
        name: f"{said} A row for each step, or for each step of each `series`: a column of times, the `target`, "
        "and perhaps covariates."
        for name, said in TABLE_FORMATS.items()
    }

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """As every task, but splits are cut from the end of each series, never drawn."""
        assert isinstance(options, SeriesOptions)
        frames = read_each(files, lambda upload: cls.read(upload, options))
        splits, schema, report = cls.describe(by_time(frames, options), options)
        counts = {name: frame.height for name, frame in splits.items()}
        shared = overlap(splits, ["series", "step"])
        return Checked(splits, schema, {"examples": counts, **report, **shared})

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        assert isinstance(options, SeriesOptions)
        return read_rows(upload, options)

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["series", "step"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        """Windows of rows at even steps."""
        assert isinstance(options, SeriesOptions)
        _check_held_out(splits)
        names = variables(splits["train"], options)
        step = step_of(splits, options)
        size = size_for(splits, step, options)
        lines = lines_of(splits, names, size.season)
        known = [place for place, name in enumerate(names) if name in options.known]
        examples = windows(lines, size, known)
        start = best_start(examples["train"], size)
        schema = {
            "target": names[0],
            "variables": [v.model_dump() for v in moments(splits["train"], names)],
            "known": [names[place] for place in known],
            "series": len(lines),
            "step": None if step is None else step.model_dump(),
            "start": start,
            **size._asdict(),
        }
        simple = _simple(examples["validation"], size.horizon)
        report = {**summary(splits, names, step, size), "start": start, "validation": simple}
        return examples, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return GRU(embedding=64, width=64, bidirectional=False, dropout=0.2, pooling="last")

    def resolve(self, facts: Facts) -> Self:
        most = facts.schema["context"]
        context = most if self.context == AUTO else self.context
        if context > most:
            allowed = f"at most {most}, which the data set was cut with (options.context)"
            raise Invalid(Problem(("task", "context"), "longer than its windows", context, allowed))
        patch = _patch(context) if self.patch == AUTO else self.patch
        if patch > context:
            raise Invalid(Problem(("task", "patch"), "longer than the context", patch, context))
        update = {"context": context, "patch": patch}
        return super().resolve(facts).model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        size = 16 if facts.examples < 1_000 else 32 if facts.examples < 20_000 else 64
        per_epoch = -(-facts.examples // size)
        return {
            "batch_size": size,
            "epochs": max(3, min(60, round(3_000 / per_epoch))),
            # At twice the rate, what is best by a short validation split is best by chance: on twelve years of
            # months, four seeds reach a MASE of 0.81 to 0.94 on the test split, three 0.80 to 1.02 at 1e-3.
            "optimizer": AdamW(learning_rate=5e-4),
        }

    @classmethod
    def share(
        cls, train: pl.LazyFrame, schema: Mapping[str, Any], share: float, seed: int
    ) -> Places:
        """The latest windows of each series: others would have seen nearly all of the same steps."""
        return latest(train.select("series").collect()["series"], share)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ForecastCodec:
        found = [Variable.model_validate(variable) for variable in schema["variables"]]
        if schema["series"] > 1:  # they may be at any level
            found = [v.model_copy(update={"mean": 0.0}) for v in found]
        if base is not None:
            _check_base(base, found, self)
        size = Size(schema["horizon"], self.context, schema["season"])
        fits = size.context > size.season
        return ForecastCodec(
            variables=found,
            known=schema["known"],
            start=schema["start"] if fits else "last",
            step=None if schema["step"] is None else Step.model_validate(schema["step"]),
            patch=self.patch,
            interval=self.interval,
            **size._asdict(),
        )

    def build(self, codec: ForecastCodec) -> Learner:
        features, vectors = codec.channels * codec.patch, codec.context // codec.patch
        backbone = self.architecture.over_vectors(features, vectors)
        size, known = codec.size, len(codec.known)
        head = ForecastHead(
            backbone.width, size.context, size.horizon, size.season, codec.start, known
        )
        criterion = ForecastLoss(self.loss.build(), codec.interval)
        return Forecaster(backbone, head, criterion, codec.patch)

    def same_outputs(self, codec: ForecastCodec, base: Any) -> bool:
        """Windows are seen at their own level, so that a head serves for any series with the same steps."""
        if not isinstance(base, ForecastCodec):
            return False
        mine, its = ((c.horizon, c.season, c.known, c.interval, c.context) for c in (codec, base))
        return mine == its

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return errors_of(predictions, examples).metrics(self.interval)

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        """The metrics, beside them those of simple forecasts, and how errors grow with the distance."""
        found = errors_of(predictions, examples)
        missed = np.abs(found.truth - found.forecast)
        per_season = missed / examples["season_scale"].to_numpy()[:, None]
        return {
            **found.metrics(self.interval),
            "seasonal_mase": float(per_season.mean()),
            "forecasts": len(predictions),
            "simple": _simple(examples, missed.shape[1]),
            "mae_by_step": missed.mean(0).tolist(),
        }


def _check_held_out(splits: Mapping[str, pl.DataFrame]) -> None:
    if "train" not in splits or "validation" not in splits:
        lacking = "validation" if "train" in splits else "train"
        raise Invalid(Problem((lacking,), "this split has no steps", 0, "longer series"))


def _simple(examples: pl.DataFrame, horizon: int) -> dict[str, Metrics]:
    """The metrics of forecasts that take no learning: the last value, and the last season."""
    truth, scale = rows_of(examples["future"], horizon), examples["scale"].to_numpy()[:, None]
    last = examples["last"].to_numpy()[:, None]
    return {
        "last_value": point_metrics(truth - last, scale),
        "last_season": point_metrics(truth - rows_of(examples["naive"], horizon), scale),
    }


def _patch(context: int) -> int:
    """The largest part of the context that makes some fourteen vectors of it, or more."""
    return next(size for size in range(max(1, context // _VECTORS), 0, -1) if context % size == 0)


def _check_base(base: Any, found: Sequence[Variable], task: SeriesForecast) -> None:
    """Raises Invalid for a base whose network reads something else."""
    channels, patch = getattr(base, "channels", None), getattr(base, "patch", None)
    if channels != len(found) or patch != task.patch:
        wanted = f"a model of {len(found)} variables, in patches of {task.patch}"
        have = None if channels is None else f"{channels} variables, in patches of {patch}"
        raise Invalid(Problem(("base",), "does not read series as this task does", have, wanted))
