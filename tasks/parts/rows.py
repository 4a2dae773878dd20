"""Table files to frames whose columns have their types, and to what is known of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from tasks.base import DatasetOptions, Upload
from tasks.parts.column_types import WANTED, ColumnType, Kind, convert, infer, to_text
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, line_of, shown
from tasks.parts.tables import SHOWN, check_mapping, pick_column, read_table

USUAL_TARGETS = ("target", "label", "class", "y")
_ID_NAME = re.compile(r"(^|[_ .-])(id|index|uuid|guid|row)$|^unnamed", re.IGNORECASE)
_ID_SHARE = 0.95


class TableOptions(DatasetOptions):
    """How to read a table."""

    ignore: list[str] = Field([], description="Columns that nothing may be learned from.")
    types: dict[str, Kind] = Field(
        {}, description="Types of columns by name, where the ones that were found are wrong."
    )


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
