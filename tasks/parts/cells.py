"""One value of a request's row, as its column wants it."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl

from tasks.parts.column_types import BOOLEANS, MISSING, WANTED, ColumnType, to_dates
from tasks.parts.problems import Problem, short

Cell = str | float | bool | datetime | None


def bad_value(cell: Any, column: ColumnType) -> Problem:
    allowed = WANTED[column.type] + (f" written {column.format}" if column.format else "")
    return Problem((column.name,), "wrong type of value", short(cell), f"{allowed}, or null")


def read_cell(cell: Any, column: ColumnType) -> Cell:
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
