"""Forecasts: what a request gives, what comes back, how both become tensors, and what forecasts are worth."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.parts.options import Plain
from models.parts.series import Start
from tasks.base import Codec, Metrics, read_fields
from tasks.parts.columns import Columns, Dense
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.timelines import MAX_HORIZON, MOST, Floats
from tasks.parts.times import Step, read_time
from tasks.parts.windows import Size, Variable, past, rows_of

MOST_ROWS = 100_000
"""Of a history in a request."""
FORECAST_METRICS: dict[str, str] = {
    "mase": "Mean absolute error, over the mean step from one value to the next in the train split of the series "
    "(Hyndman and Koehler, 2006); 1 is as far off as a value is from the one before. Lower is better.",
    "mae": "Mean absolute error, in the unit of the target; lower is better.",
    "rmse": "Root of the mean squared error, in the unit of the target; lower is better.",
    "coverage": "Share of the values that lie between `lower` and `upper`; should be the task's `interval`.",
    "pinball": "Mean pinball loss of `lower` and `upper`, over the same mean step as `mase`; lower is better.",
}
Number = Annotated[float, Field(allow_inf_nan=False)]
Cell = Number | str | None
Rows = list[Number | list[Number | None] | dict[str, Cell] | None]


class ForecastParameters(Plain):
    """How to forecast."""

    horizon: int | None = Field(
        None,
        ge=1,
        le=MAX_HORIZON,
        description="Steps to forecast; all that the model has learned to if left out.",
    )


class ForecastInput(ForecastParameters):
    """The past of a series."""

    history: Rows = Field(
        min_length=1,
        max_length=MOST_ROWS,
        description="The series up to now, the oldest first: numbers, or, with covariates, a row for each step, "
        'as `[target, covariate, ...]` or `{"target": 3, "covariate": 4}` by the names of the columns. Null is '
        "where a value is missing.",
        examples=[[112, 118, 132, 129, 121, 135]],
    )
    future: Rows | None = Field(
        None,
        max_length=MAX_HORIZON,
        description="What is known of the steps to come, where the model has learned from covariates known ahead: "
        "a row for each step, in the order of `known` or by names.",
    )
    time: str | int | None = Field(
        None,
        description="When the last row of the history was; the forecast then tells its times.",
        examples=["1960-12"],
    )


class ForecastPrediction(Plain):
    """What comes next, and between which values it probably lies."""

    forecast: list[float] = Field(description="The target, step by step.")
    lower: list[float] = Field(description="What it probably does not fall below.")
    upper: list[float] = Field(description="What it probably does not rise above.")
    times: list[str | int] | None = Field(
        None, description="When these steps are, if the request said when the last one was."
    )


class Given(NamedTuple):
    """An input that was read."""

    history: Floats
    """(context, V)"""
    known: Floats
    """(H, K)"""
    horizon: int
    time: datetime | int | None


class ForecastCodec(Codec):
    """The variables and their scales, how windows are cut, and the time between steps."""

    variables: list[Variable]
    """The target first."""
    known: list[str]
    """Those that are known ahead."""
    horizon: int
    context: int
    season: int
    start: Start
    step: Step | None
    patch: int
    interval: float

    @property
    def size(self) -> Size:
        return Size(self.horizon, self.context, self.season)

    @property
    def channels(self) -> int:
        return len(self.variables)

    @property
    def names(self) -> list[str]:
        return [variable.name for variable in self.variables]

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        count, channels = examples.height, self.channels
        wide = int(examples["history"].list.len()[0]) if count else self.context * channels
        history = rows_of(examples["history"], wide).reshape(count, -1, channels)
        known = rows_of(examples["known"], self.horizon * len(self.known))
        inputs = self._inputs(
            history[:, -self.context :], known.reshape(count, self.horizon, -1 if self.known else 0)
        )
        if not targets:
            return Columns(inputs)
        target = self.variables[0]
        future = (rows_of(examples["future"], self.horizon) - target.mean) / target.deviation
        scale = examples["scale"].to_numpy() / target.deviation
        return Columns(inputs, (_dense(future), _dense(scale)))

    def _inputs(self, history: Floats, known: Floats) -> tuple[Dense, ...]:
        scaled = _dense(_standardised(history, self.variables))
        if not self.known:
            return (scaled,)
        ahead = [self.variables[self.names.index(name)] for name in self.known]
        return scaled, _dense(_standardised(known, ahead))

    def read_input(self, value: Any) -> Given:
        if isinstance(value, Given):
            return value
        read = read_fields(ForecastInput, value)
        problems: list[Problem] = []
        horizon = self._horizon(read, problems)
        history = self._filled(_rows(read.history, self.names, "history", problems), problems)
        known = self._known(read, horizon, problems)
        time = self._time(read, problems)
        if problems:
            raise Invalid(*problems)
        return Given(past(history, self.context, self.season), known, horizon, time)

    def _horizon(self, read: ForecastInput, problems: list[Problem]) -> int:
        horizon = self.horizon if read.horizon is None else read.horizon
        if horizon > self.horizon:
            allowed = f"at most {self.horizon}, which the model has learned"
            problems.append(Problem(("horizon",), "too far ahead", horizon, allowed))
        return min(horizon, self.horizon)

    def _filled(self, rows: Floats, problems: list[Problem]) -> Floats:
        """Each missing value as the one before it; covariates that begin later as they begin."""
        if len(rows) < self.size.least:
            allowed = f"{self.size.least} steps or more"
            problems.append(Problem(("history",), "too short a past", len(rows), allowed))
        table = pl.DataFrame(rows).fill_nan(None)
        sound = table.to_series(0).drop_nulls()
        if len(rows) and not len(sound):
            problems.append(Problem(("history",), "no value of the target", None, self.names[0]))
        filled = table.select(pl.all().forward_fill().backward_fill())
        # A covariate that is missing throughout is at its mean.
        means = [variable.mean for variable in self.variables]
        whole = [filled.to_series(n).fill_null(mean) for n, mean in enumerate(means)]
        return np.stack([column.to_numpy() for column in whole], 1).astype(np.float64)

    def _known(self, read: ForecastInput, horizon: int, problems: list[Problem]) -> Floats:
        if not self.known:
            if read.future is not None:
                problems.append(
                    Problem(("future",), "nothing is known ahead", None, "leave it out")
                )
            return np.zeros((self.horizon, 0))
        rows = _rows(read.future or [], self.known, "future", problems)
        if len(rows) < horizon or np.isnan(rows[:horizon]).any():
            found, allowed = f"{len(rows)} rows", f"{horizon} rows of {', '.join(self.known)}"
            problems.append(Problem(("future",), "not known for every step", found, allowed))
            return np.zeros((self.horizon, len(self.known)))
        # Steps that nobody asks for may be anything.
        return rows[np.minimum(np.arange(self.horizon), len(rows) - 1)]

    def _time(self, read: ForecastInput, problems: list[Problem]) -> datetime | int | None:
        if read.time is None:
            return None
        allowed = "a time such as 2024-05-31T12:00:00, or leave it out"
        if self.step is None:
            found = "the rows that were learned from have no even steps in time"
            problems.append(Problem(("time",), found, read.time, "leave it out"))
            return None
        try:
            time = read_time(read.time)
            if isinstance(time, int) == (self.step.unit == "number"):
                self.step.after(time, self.horizon)  # there are calendars without these days
        except (ValueError, OverflowError):
            problems.append(Problem(("time",), "not a time", short(read.time), allowed))
            return None
        if isinstance(time, int) != (self.step.unit == "number"):
            kind = "a number" if self.step.unit == "number" else allowed
            problems.append(Problem(("time",), "not a time of this series", read.time, kind))
            return None
        return time

    def blank(self) -> dict[str, Any]:
        means = [variable.mean for variable in self.variables]
        ahead = [[v.mean for v in self.variables if v.name in self.known]] * self.horizon
        return {"history": [means] * self.size.least, **({"future": ahead} if self.known else {})}

    def encode_inputs(self, inputs: Sequence[Given]) -> Columns:
        history = np.stack([given.history for given in inputs])
        return Columns(self._inputs(history, np.stack([given.known for given in inputs])))

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from lower ends, forecasts and upper ends (B, 3, H)."""
        target = self.variables[0]
        values = (outputs.double() * target.deviation + target.mean).tolist()
        make = ForecastPrediction.model_construct
        return [
            make(forecast=forecast, lower=lower, upper=upper, times=None)
            for lower, forecast, upper in values
        ]

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """As many steps as were asked for, and their times."""
        return [
            prediction if given is None else self._asked(prediction, given)
            for prediction, given in zip(predictions, inputs, strict=True)
        ]

    def _asked(self, prediction: ForecastPrediction, given: Given) -> ForecastPrediction:
        steps, times = given.horizon, None
        if given.time is not None and self.step is not None:
            found = self.step.after(given.time, steps)
            times = [t if isinstance(t, int) else t.isoformat() for t in found]
        return ForecastPrediction.model_construct(
            forecast=prediction.forecast[:steps],
            lower=prediction.lower[:steps],
            upper=prediction.upper[:steps],
            times=times,
        )


def _dense(values: Floats) -> Dense:
    return Dense(torch.from_numpy(values.astype(np.float32)))


def _standardised(values: Floats, variables: Sequence[Variable]) -> Floats:
    """Values (..., V) of mean 0 and deviation 1 in the train split."""
    means = np.array([variable.mean for variable in variables])
    found: Floats = (values - means) / np.array([variable.deviation for variable in variables])
    return found


def _rows(rows: Rows, names: Sequence[str], field: str, problems: list[Problem]) -> Floats:
    """The rows of a request (N, V), NaN where a value is missing."""
    found = np.full((len(rows), len(names)), np.nan)
    for place, row in enumerate(rows):
        problem = _read_row(row, names, found[place])
        if problem is not None:
            problems.append(problem._replace(loc=(field, place, *problem.loc)))
            if len(problems) >= Invalid.LIMIT:
                break
    return found


def _read_row(row: Any, names: Sequence[str], into: Floats) -> Problem | None:
    """What is wrong with a row, whose values are written where they belong."""
    if isinstance(row, dict):
        lacking = [name for name in names if name not in row]
        if lacking:
            return Problem((), "the row lacks a column", sorted(row)[:50], lacking)
        values = [row[name] for name in names]
    else:
        values = list(row) if isinstance(row, list) else [row]
    if len(values) != len(names):
        return Problem((), "wrong number of values", len(values), list(names))
    for place, value in enumerate(values):
        if isinstance(value, str):
            return Problem((names[place],), "not a number", short(value), "a number or null")
        if value is not None and abs(value) > MOST:
            return Problem((names[place],), "too large", value, f"at most {MOST:g}")
        if value is not None:
            into[place] = value
    return None


# What forecasts are worth


class Errors(NamedTuple):
    """Forecasts beside what came, each (N, H), and the usual steps of their series (N, 1)."""

    truth: Floats
    forecast: Floats
    lower: Floats
    upper: Floats
    scale: Floats

    def metrics(self, interval: float) -> Metrics:
        """Every metric of `FORECAST_METRICS`."""
        missed, tail = self.truth - self.forecast, (1 - interval) / 2
        inside = (self.lower <= self.truth) & (self.truth <= self.upper)
        below, above = self.truth - self.lower, self.truth - self.upper
        ends = _pinball(below, tail) + _pinball(above, 1 - tail)
        return {
            **point_metrics(missed, self.scale),
            "coverage": float(inside.mean()),
            "pinball": float((ends / self.scale).mean() / 2),
        }


def errors_of(predictions: Sequence[ForecastPrediction], examples: pl.DataFrame) -> Errors:
    """Predictions beside the truth of their examples."""
    horizon = len(predictions[0].forecast)
    return Errors(
        truth=rows_of(examples["future"], horizon),
        forecast=np.array([prediction.forecast for prediction in predictions]),
        lower=np.array([prediction.lower for prediction in predictions]),
        upper=np.array([prediction.upper for prediction in predictions]),
        scale=examples["scale"].to_numpy()[:, None],
    )


def point_metrics(missed: Floats, scale: Floats) -> Metrics:
    """The metrics of errors (N, H) that know no interval."""
    return {
        "mase": float((np.abs(missed) / scale).mean()),
        "mae": float(np.abs(missed).mean()),
        "rmse": float(np.sqrt((missed**2).mean())),
    }


def _pinball(errors: Floats, quantile: float) -> Floats:
    return np.maximum(quantile * errors, (quantile - 1) * errors)
