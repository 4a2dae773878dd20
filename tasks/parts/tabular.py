"""Rows of tables: what the columns are, how they become tensors, and how a request's row is read."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field, RootModel

from models.parts.options import Plain
from tasks.base import Codec, DatasetOptions, Upload
from tasks.parts.column_types import (
    BOOLEANS,
    MISSING,
    ColumnType,
    Kind,
    convert,
    infer,
    to_dates,
    to_text,
)
from tasks.parts.columns import Columns, Dense
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, line_of, shown
from tasks.parts.tables import SHOWN, check_mapping, pick_column, read_table

Floats = NDArray[np.float64]
Cell = str | float | bool | datetime | None

USUAL_TARGETS = ("target", "label", "class", "y")
MAX_CATEGORIES = 1_000
KNOTS = 128
_COMMON = 1_000
"""Examples from which on a category must occur twice to count as one."""
_SPIKE, _REPEATED = 0.5, 5
_ID_NAME = re.compile(r"(^|[_ .-])(id|index|uuid|guid|row)$|^unnamed", re.IGNORECASE)
_ID_SHARE = 0.95


class TableOptions(DatasetOptions):
    """How to read a table."""

    ignore: list[str] = Field([], description="Columns that nothing may be learned from.")
    types: dict[str, Kind] = Field(
        {}, description="Types of columns by name, where the ones that were found are wrong."
    )


class Row(RootModel[dict[str, Cell]]):
    """A row: values by the names of their columns. A column left out, or null, has no value."""

    model_config = {"json_schema_extra": {"examples": [{"age": 39, "job": "nurse", "since": None}]}}


# From files to typed columns


def read_rows(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    """A file as a frame without the columns to ignore. Raises Invalid for options that do not fit it."""
    assert isinstance(options, TableOptions)
    check_mapping(options.column_mapping, ["target"])
    frame = read_table(upload, options.format)
    named = {"ignore": options.ignore, "types": [*options.types]}
    problems = [
        Problem(("options", option, name), "no such column", name, shown(frame)[:SHOWN])
        for option, names in named.items()
        for name in names
        if name not in frame.columns
    ]
    if problems:
        raise Invalid(*problems)
    frame = frame.drop(options.ignore)
    target_of(frame, options)
    return frame


def target_of(frame: pl.DataFrame, options: DatasetOptions) -> str:
    """The column to predict: the one asked for, one with a usual name, or the last one.

    Raises Invalid when it is missing or the only column.
    """
    splits = {LINE, options.split.by}
    columns = [name for name in frame.columns if name not in splits]
    target = pick_column(frame, "target", options.column_mapping, USUAL_TARGETS)
    if len(columns) < 2:
        raise Invalid(Problem((), "too few columns", columns, "a target and another column"))
    return target or columns[-1]


class Described(NamedTuple):
    """Splits whose columns have their types, and what there is to say of them."""

    splits: dict[str, pl.DataFrame]
    columns: list[ColumnType]
    dropped: dict[str, str]
    report: dict[str, Any]

    def schema(self, target: str, **more: Any) -> dict[str, Any]:
        """What is known of the data set before it is read."""
        columns = [column.model_dump(exclude_none=True) for column in self.columns]
        return {"target": target, "columns": columns, "dropped": self.dropped, **more}


def describe_rows(
    splits: Mapping[str, pl.DataFrame], target: str, options: DatasetOptions
) -> Described:
    """Types for all columns but the target, the same in every split.

    Raises Invalid for missing columns, cells that are not of their column's type, and when nothing is
    left to learn from.
    """
    assert isinstance(options, TableOptions)
    whole = join(splits)
    train = whole.head(splits["train"].height)
    names = [name for name in shown(whole) if name != target]
    types = [_type(name, train, whole, options) for name in names]
    problems: list[Problem] = []
    typed = [_convert(whole, column, splits, problems) for column in types]
    if problems:
        raise Invalid(*problems)
    whole = whole.with_columns(typed)
    dropped = {name: why for name in names if (why := _useless(whole, name, train.height, options))}
    columns = [column for column in types if column.name not in dropped]
    if not columns:
        raise Invalid(Problem(("file",), "no column to learn from", dropped, "columns that vary"))
    report = {"target": target, "columns": _statistics(whole, types), "dropped": dropped}
    # The target comes last: whoever reads the splits finds it there, whatever its name.
    whole = whole.select(pl.exclude(target), target)
    return Described(part(whole, splits), columns, dropped, report)


def truth(examples: pl.DataFrame) -> pl.Series:
    """The target values (N,) of described examples."""
    return examples.to_series(-1)


def join(splits: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """All splits below each other, with the train split's columns. Raises Invalid when one lacks some."""
    columns = splits["train"].columns
    problems = [
        Problem((split,), "the column is missing", name, shown(splits["train"])[:SHOWN])
        for split, frame in splits.items()
        for name in columns
        if name not in frame.columns
    ]
    if problems:
        raise Invalid(*problems)
    frames = [frame.select(columns) for frame in splits.values()]
    return pl.concat(
        frame.select(_alike(frame[name], frames) for name in columns) for frame in frames
    )


def _alike(values: pl.Series, frames: Sequence[pl.DataFrame]) -> pl.Series:
    """A column in a type that it can have in all the frames."""
    kinds = {frame.schema[values.name] for frame in frames}
    if len(kinds) == 1:
        return values
    return values.cast(pl.Float64) if all(k.is_numeric() for k in kinds) else to_text(values)


def part(whole: pl.DataFrame, splits: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The splits again, from a frame that `join` made of them."""
    starts = np.cumsum([0, *(frame.height for frame in splits.values())]).tolist()
    return {
        name: whole.slice(start, frame.height)
        for start, (name, frame) in zip(starts[:-1], splits.items(), strict=True)
    }


def _type(name: str, train: pl.DataFrame, whole: pl.DataFrame, options: TableOptions) -> ColumnType:
    found = infer(name, train[name], whole[name])
    asked = options.types.get(name)
    return found if asked in (None, found.type) else ColumnType(name=name, type=asked)


def _convert(
    whole: pl.DataFrame,
    column: ColumnType,
    splits: Mapping[str, pl.DataFrame],
    problems: list[Problem],
) -> pl.Series:
    values, bad = convert(whole[column.name], column)
    rows = bad.arg_true()[: Invalid.LIMIT].to_list()
    problems += [_bad_cell(whole, splits, row, column) for row in rows]
    return values


WANTED: dict[str, str] = {
    "categorical": "text",
    "numeric": "a finite number",
    "boolean": "true or false",
    "date": "a date",
}


def _bad_cell(
    whole: pl.DataFrame, splits: Mapping[str, pl.DataFrame], row: int, column: ColumnType
) -> Problem:
    wanted = WANTED[column.type] + (f" written {column.format}" if column.format else "")
    return Problem(
        (*place_of(whole, splits, row), column.name),
        f"the column is {column.type}, this cell is not",
        str(whole[column.name][row]),
        f'{wanted}, or no value; options.types {{"{column.name}": "categorical"}} reads any text',
    )


def place_of(
    whole: pl.DataFrame, splits: Mapping[str, pl.DataFrame], row: int
) -> tuple[str | int, ...]:
    """Split and line of a row of all the splits joined."""
    start = 0
    for name, frame in splits.items():
        if row < start + frame.height:
            return name, "line", line_of(whole, row) if LINE in whole.columns else row - start + 1
        start += frame.height
    raise IndexError(row)


def _useless(whole: pl.DataFrame, name: str, train: int, options: TableOptions) -> str | None:
    """Why nothing can be learned from a column, if so."""
    values = whole[name]
    if values.head(train).n_unique() <= 1:
        return "the same value in every row of the train split"
    if name in options.types:
        return None
    sound = values.drop_nulls()
    distinct = sound.n_unique() / max(1, len(sound))
    if values.dtype == pl.String and len(sound) >= 10 and distinct >= _ID_SHARE:
        return "a different text in nearly every row"
    if values.dtype == pl.Int64 and distinct == 1 and _ID_NAME.search(name):
        return "a number for every row"
    return None


def _statistics(whole: pl.DataFrame, columns: list[ColumnType]) -> dict[str, Any]:
    return {
        column.name: {
            "type": column.type,
            "missing": whole[column.name].null_count(),
            "distinct": whole[column.name].drop_nulls().n_unique(),
        }
        for column in columns
    }


# From typed columns to tensors


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
        return np.nan_to_num(np.interp(values, self.knots, self.heights), nan=0.0)


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
            raise Invalid(Problem((), "not a row", repr(value)[:80], allowed))
        row: dict[str, Cell] = {}
        problems = []
        for name, cell in value.items():
            if name not in self._by_name:
                columns = [column.name for column in self.columns][:SHOWN]
                problems.append(Problem((str(name),), "no such column", name, columns))
            elif (column := self._by_name[name]) is not None:
                try:
                    row[name] = _read_cell(cell, column)
                except ValueError:
                    problems.append(_bad_value(cell, column))
        if problems:
            raise Invalid(*problems)
        return Row.model_construct(row)

    def frame(self, inputs: Sequence[Row]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                column.name: pl.Series(
                    column.name, [row.root.get(column.name) for row in inputs], _DTYPES[column.type]
                )
                for column in self.columns
            }
        )


_DTYPES: dict[str, Any] = {
    "numeric": pl.Float64,
    "categorical": pl.String,
    "boolean": pl.Boolean,
    "date": pl.Datetime("us"),
}
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
        faults = [(row, _bad_value(values[row], column)) for row in rows]
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


# One cell of a request


def _bad_value(cell: Any, column: ColumnType) -> Problem:
    allowed = WANTED[column.type] + (f" written {column.format}" if column.format else "")
    return Problem((column.name,), "wrong type of value", repr(cell)[:80], f"{allowed}, or null")


def _read_cell(cell: Any, column: ColumnType) -> Cell:
    """A value as its column wants it. Raises ValueError."""
    if isinstance(cell, str):
        cell = cell.strip()
        if cell.lower() in MISSING:
            return None
    if cell is None:
        return None
    return _CELLS[column.type](cell, column)


def _number(cell: Any, column: ColumnType) -> float:
    if not isinstance(cell, int | float | str):
        raise ValueError
    try:
        value = float(cell)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(value):
        raise ValueError
    return value


def _text(cell: Any, column: ColumnType) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if not isinstance(cell, int | float | str):
        raise ValueError
    return str(cell)


def _boolean(cell: Any, column: ColumnType) -> bool:
    word = _text(cell, column).lower()
    if word not in BOOLEANS:
        raise ValueError
    return BOOLEANS[word]


def _date(cell: Any, column: ColumnType) -> datetime:
    if isinstance(cell, datetime):
        return cell
    if not isinstance(cell, str):
        raise ValueError
    if column.format:
        parsed = to_dates(pl.Series([cell]), column.format)[0]
        if isinstance(parsed, datetime):
            return parsed
    found = datetime.fromisoformat(cell)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


_CELLS: dict[str, Callable[[Any, ColumnType], Cell]] = {
    "numeric": _number,
    "categorical": _text,
    "boolean": _boolean,
    "date": _date,
}


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
    accuracy on census data from 84.1 to 85.8 % (perceptron) and from 84.6 to 85.9 % (linear).
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
