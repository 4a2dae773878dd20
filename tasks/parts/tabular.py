"""Rows of tables to tensors: numbers on a bell curve, and codes of categories."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, RootModel

from models.parts.options import Plain
from tasks.base import Codec
from tasks.parts.cells import Cell, bad_value, read_cell
from tasks.parts.column_types import (
    ColumnType,
    convert,
)
from tasks.parts.columns import Columns, Dense
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.rows import truth
from tasks.parts.splits import shown
from tasks.parts.tables import SHOWN

Floats = NDArray[np.float64]

MAX_CATEGORIES = 1_000
KNOTS = 128
_COMMON = 1_000
"""Examples from which on a category must occur twice to count as one."""
_SPIKE, _REPEATED = 0.5, 5


class Row(RootModel[dict[str, Cell]]):
    """A row: values by the names of their columns. A column left out, or null, has no value."""

    model_config = {"json_schema_extra": {"examples": [{"age": 39, "job": "nurse", "since": None}]}}


class Number(Plain):
    """A number the network sees: a column, or a part of a date, mapped to a bell curve.

    Between `knots`, which are quantiles of the train split, the map to `heights` is linear, so
    that neither outliers nor skew reach the network. Values beyond the outer knots get theirs.
    """

    column: str
    part: str | None
    knots: list[float]
    heights: list[float]

    def standardise(self, values: Floats) -> Floats:
        """Values (N,) with NaN where missing, to values of mean 0 and deviation 1, 0 where missing."""
        heights = np.interp(values, *self._curve)
        heights[np.isnan(values)] = 0.0
        return heights

    @cached_property
    def _curve(self) -> tuple[Floats, Floats]:
        return np.array(self.knots), np.array(self.heights)


class Category(Plain):
    """A column of categories, the commonest first; code 0 is for missing and other values.

    Also numbers are categories, beside being numbers, when most of them are one and the same.
    """

    column: str
    values: list[str] | list[float]

    @cached_property
    def codes(self) -> dict[Any, int]:
        return {value: code for code, value in enumerate(self.values, start=1)}


class TabularCodec(Codec):
    """Rows to numbers and categories; the outputs are up to the task."""

    columns: list[ColumnType]
    ignored: list[str]
    """Names that a row may carry without any effect."""
    numbers: list[Number]
    indicators: list[str]
    """Columns with missing values in the train split: each has a number that says so."""
    categories: list[Category]

    @abstractmethod
    def encode_target(self, values: pl.Series) -> Dense:
        """Target values (N,) as the learner's loss wants them."""

    @property
    def width(self) -> int:
        """Numbers per row."""
        return len(self.numbers) + len(self.indicators)

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each category column."""
        return [len(category.values) + 1 for category in self.categories]

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        problems = [
            Problem((column.name,), "the column is missing", None, examples.columns[:SHOWN])
            for column in self.columns
            if column.name not in examples.columns
        ]
        if problems:
            raise Invalid(*problems)
        return Columns(
            self._inputs(_FrameCells(examples, self.columns), examples.height),
            (self.encode_target(truth(examples)),) if targets else (),
        )

    def encode_inputs(self, inputs: Sequence[Row]) -> Columns:
        """Like encoding their frame, without making one: a single row takes microseconds."""
        return Columns(self._inputs(_RowCells(inputs), len(inputs)))

    def _inputs(self, cells: "_Cells", count: int) -> tuple[Dense, Dense]:
        numbers = np.empty((count, self.width), dtype=np.float32)
        for place, number in enumerate(self.numbers):
            numbers[:, place] = number.standardise(cells.floats(number.column, number.part))
        for place, name in enumerate(self.indicators, start=len(self.numbers)):
            numbers[:, place] = np.isnan(cells.floats(name, self._first_part(name)))
        codes = np.empty((count, len(self.categories)), dtype=np.int64)
        for place, category in enumerate(self.categories):
            codes[:, place] = cells.codes(category)
        return Dense(torch.from_numpy(numbers)), Dense(torch.from_numpy(codes))

    def _first_part(self, name: str) -> str | None:
        return next(number.part for number in self.numbers if number.column == name)

    @cached_property
    def _by_name(self) -> dict[str, ColumnType | None]:
        return dict.fromkeys(self.ignored) | {column.name: column for column in self.columns}

    def read_input(self, value: Any) -> Row:
        """A row of a request. Raises Invalid for unknown columns and values of the wrong type."""
        if isinstance(value, Row):
            value = value.root
        if not isinstance(value, dict):
            allowed = '{"column": value, ...}'
            raise Invalid(Problem((), "not a row", short(value), allowed))
        row: dict[str, Cell] = {}
        problems = []
        for name, cell in value.items():
            if name not in self._by_name:
                columns = [column.name for column in self.columns][:SHOWN]
                problems.append(Problem((str(name),), "no such column", name, columns))
            elif (column := self._by_name[name]) is not None:
                try:
                    row[name] = read_cell(cell, column)
                except ValueError:
                    problems.append(bad_value(cell, column))
        if problems:
            raise Invalid(*problems)
        return Row.model_construct(row)

    def blank(self) -> Row:
        return Row({})

    def input_fields(self, input_type: type[BaseModel]) -> dict[str, Any]:
        return {column.name: _CELLS[column.type] for column in self.columns}


_CELLS: dict[str, type] = {"numeric": float, "categorical": str, "boolean": bool, "date": str}
"""What a request's rows hold."""
_PARTS: dict[str, Callable[[pl.Series], pl.Series]] = {
    "time": lambda times: times.dt.epoch("s"),
    "year": lambda times: times.dt.year(),
    "month": lambda times: times.dt.month(),
    "weekday": lambda times: times.dt.weekday(),
    "hour": lambda times: times.dt.hour(),
}


def _floats(values: pl.Series) -> Floats:
    """Values (N,) as numbers, NaN where missing."""
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


class _Cells(Protocol):
    """Columns of examples or of a request's rows."""

    def floats(self, name: str, part: str | None) -> Floats:
        """A column (N,), or that part of its dates; NaN where missing."""
        ...

    def codes(self, category: Category) -> NDArray[np.int64]:
        """A column's codes (N,)."""
        ...


class _FrameCells:
    """Cells of a frame, whose columns need not have the wanted types yet."""

    def __init__(self, frame: pl.DataFrame, columns: Sequence[ColumnType]) -> None:
        self._values = {column.name: _sound(frame[column.name], column) for column in columns}

    def floats(self, name: str, part: str | None) -> Floats:
        values = self._values[name]
        return _floats(_PARTS[part](values) if part else values)

    def codes(self, category: Category) -> NDArray[np.int64]:
        values = self._values[category.column]
        codes = (values.cast(pl.Float64) if values.dtype.is_numeric() else values).replace_strict(
            category.values, range(1, len(category.values) + 1), default=0, return_dtype=pl.Int64
        )
        return codes.to_numpy()


def _sound(values: pl.Series, column: ColumnType) -> pl.Series:
    converted = convert(values, column)
    rows = converted.bad.arg_true()[: Invalid.LIMIT].to_list()
    if rows:
        faults = [(row, bad_value(values[row], column)) for row in rows]
        raise Invalid(*(fault._replace(loc=("row", row + 1, *fault.loc)) for row, fault in faults))
    return converted.values


class _RowCells:
    """Cells of rows that `read_input` has read."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = [row.root for row in rows]

    def floats(self, name: str, part: str | None) -> Floats:
        cells = [row.get(name) for row in self._rows]
        if part:
            return _floats(_PARTS[part](pl.Series(name, cells, pl.Datetime("us"))))
        return np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)

    def codes(self, category: Category) -> NDArray[np.int64]:
        code = category.codes
        return np.array([code.get(row.get(category.column), 0) for row in self._rows], np.int64)


# What the train split says


def learn_columns(
    train: pl.DataFrame, schema: Mapping[str, Any], base: TabularCodec | None = None
) -> dict[str, Any]:
    """The fields of a `TabularCodec`, from the train split or from the codec of a base.

    Raises Invalid when columns that the base relies on are missing.
    """
    if base is not None:
        return _columns_of(base, train, schema)
    columns = [ColumnType.model_validate(column) for column in schema["columns"]]
    values = {column.name: train[column.name] for column in columns}
    numbers = [number for column in columns for number in _learn_numbers(column, values)]
    numeric = dict.fromkeys(number.column for number in numbers)
    return {
        "columns": columns,
        "ignored": sorted(set(train.columns) - set(values)),
        "numbers": numbers,
        "indicators": [name for name in numeric if values[name].null_count()],
        "categories": [
            _learn_category(column, values[column.name])
            for column in columns
            if column.type == "categorical" or _spiked(column, values[column.name])
        ],
    }


def _columns_of(
    base: TabularCodec, train: pl.DataFrame, schema: Mapping[str, Any]
) -> dict[str, Any]:
    target = schema["target"]
    needed = [column.name for column in base.columns]
    lacking = [name for name in needed if name not in train.columns or name == target]
    if lacking:
        problem = "the base needs columns that the data set lacks"
        raise Invalid(Problem(("base",), problem, shown(train)[:SHOWN], lacking))
    fields = {name: getattr(base, name) for name in TabularCodec.model_fields}
    ignored = sorted(set(base.ignored) | (set(train.columns) - set(needed)))
    return {**fields, "ignored": ignored}


def _learn_numbers(column: ColumnType, values: Mapping[str, pl.Series]) -> Iterator[Number]:
    if column.type == "categorical":
        return
    for part in _PARTS if column.type == "date" else (None,):
        series = values[column.name]
        curve = bell_curve(_floats(_PARTS[part](series) if part else series))
        if curve is not None:
            yield Number(column=column.name, part=part, knots=curve[0], heights=curve[1])


def bell_curve(values: Floats) -> tuple[list[float], list[float]] | None:
    """Knots and heights that map values (N,) to a normal distribution of mean 0 and deviation 1.

    A quantile transform with few knots; None for values that do not vary. NaN are left out.
    """
    values = values[~np.isnan(values)]
    knots, counts = np.unique(values, return_counts=True)
    if len(knots) < 2:
        return None
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()  # ties share their middle rank
    if len(knots) > KNOTS:
        places = np.searchsorted(ranks, np.linspace(0, 1, KNOTS)).clip(max=len(knots) - 1)
        places = np.unique(places)
        knots, ranks = knots[places], ranks[places]
    heights = torch.special.ndtri(torch.from_numpy(ranks)).numpy()
    made = np.interp(values, knots, heights)
    return knots.tolist(), ((heights - made.mean()) / made.std()).tolist()


def _spiked(column: ColumnType, values: pl.Series) -> bool:
    """Whether a number is mostly one value, and else often one of a few, like gains or fees.

    What such a value means does not grow with it: as categories too, capital gains raise the
    accuracy on census data from 84.1 to 86.7 % (perceptron) and from 84.2 to 85.9 % (linear).
    """
    if column.type != "numeric":
        return False
    counts = values.drop_nulls().value_counts(sort=True, name="\0count")["\0count"]
    return counts[0] > _SPIKE * len(values) and (counts >= _REPEATED).sum() > 2


def _learn_category(column: ColumnType, values: pl.Series) -> Category:
    numeric = column.type == "numeric"
    least = _REPEATED if numeric else 2 if len(values) >= _COMMON else 1
    counts = values.drop_nulls().value_counts(name="\0count")
    counts = counts.filter(pl.col("\0count") >= least).sort(
        "\0count", column.name, descending=[True, False]
    )
    found = counts[column.name].head(MAX_CATEGORIES)
    return Category(
        column=column.name, values=(found.cast(pl.Float64) if numeric else found).to_list()
    )
