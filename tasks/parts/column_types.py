"""What a table's columns are - numbers, categories, booleans or dates - and their values as such."""

from typing import Literal, NamedTuple

import polars as pl
from polars.exceptions import PolarsError

from models.parts.options import Plain

Kind = Literal["numeric", "categorical", "boolean", "date"]

MISSING = ("", "?", "-", "na", "n/a", "#n/a", "nan", "null", "none", "nil")
"""Cells that stand for no value, in lower case."""
TRUE, FALSE = ("true", "yes", "y", "t"), ("false", "no", "n", "f")
BOOLEANS = {**dict.fromkeys((*TRUE, "1"), True), **dict.fromkeys((*FALSE, "0"), False)}
WANTED: dict[str, str] = {
    "categorical": "text",
    "numeric": "a finite number",
    "boolean": "true or false",
    "date": "a date",
}
"""What a value of each type looks like."""
_NEARLY = 0.99
"""A column so full of numbers is one of numbers, and the rest of its cells are mistakes."""
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y")
_TIMES = (
    "",
    " %H:%M",
    " %H:%M:%S%.f",
    "T%H:%M",
    "T%H:%M:%S%.f",
    " %H:%M:%S%.f%#z",
    "T%H:%M:%S%.f%#z",
)
_SAMPLE = 200


class ColumnType(Plain):
    """A column's name and what its values are; dates have the format they are written in."""

    name: str
    type: Kind
    format: str | None = None


class Converted(NamedTuple):
    """Values in a column's own type, null where missing or bad, and where the bad ones are (N,)."""

    values: pl.Series
    bad: pl.Series


def to_text(values: pl.Series) -> pl.Series:
    """Any values as stripped strings; whole numbers without a fraction, booleans in lower case."""
    text = values.cast(pl.String).str.strip_chars()
    if not values.dtype.is_float():
        return text
    # Each by itself: what a value is called may not depend on those beside it.
    whole = values.cast(pl.Int64, strict=False)
    is_whole = (whole.cast(values.dtype) == values) & (values.abs() < 2**53)
    return whole.cast(pl.String).zip_with(is_whole.fill_null(False), text)


def _present(values: pl.Series) -> pl.Series:
    """Values as strings, null where a cell says that there is none."""
    text = to_text(values)
    return text.set(text.str.to_lowercase().is_in(MISSING), None)


def _whole(values: pl.Series) -> bool:
    """Whether floats are whole numbers that survive as such."""
    sound = values.drop_nulls()
    return bool(((sound == sound.round()) & (sound.abs() < 2**53)).all())


def infer(name: str, train: pl.Series, whole: pl.Series) -> ColumnType:
    """What a column is, from its values in the train split and in all of the data."""
    if whole.dtype == pl.Boolean:
        return ColumnType(name=name, type="boolean")
    if whole.dtype.is_numeric():
        return ColumnType(name=name, type="numeric")
    if whole.dtype.is_temporal():
        return ColumnType(name=name, type="date")
    return _infer_text(name, _present(train).drop_nulls(), _present(whole).drop_nulls())


def _infer_text(name: str, train: pl.Series, whole: pl.Series) -> ColumnType:
    if whole.is_empty():
        return ColumnType(name=name, type="categorical")
    if whole.str.to_lowercase().is_in([*TRUE, *FALSE]).all():
        return ColumnType(name=name, type="boolean")
    parses = (whole.cast(pl.Float64, strict=False).is_not_null()).mean()
    # Leading zeros are those of codes: postcodes, article numbers.
    codes = whole.str.contains(r"^[+-]?0\d").any()
    if _mostly(train.cast(pl.Float64, strict=False), parses) and not codes:
        return ColumnType(name=name, type="numeric")
    pattern = date_format(train)
    if pattern is not None:
        return ColumnType(name=name, type="date", format=pattern)
    return ColumnType(name=name, type="categorical")


def _mostly(train: pl.Series, share: object) -> bool:
    in_train = len(train) > 0 and train.null_count() == 0
    return in_train or (isinstance(share, float) and share >= _NEARLY)


def date_format(values: pl.Series) -> str | None:
    """The format in which nearly all of these strings are dates, if there is one."""
    if values.is_empty() or not _looks_like_dates(values.head(_SAMPLE)):
        return None
    for pattern in (day + time for day in _DAYS for time in _TIMES):
        head = to_dates(values.head(_SAMPLE), pattern)
        if head.null_count() <= (1 - _NEARLY) * len(head):
            parsed = to_dates(values, pattern)
            if parsed.null_count() <= (1 - _NEARLY) * len(parsed):
                return pattern
    return None


def _looks_like_dates(values: pl.Series) -> bool:
    share = values.str.contains(r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}").mean()
    return isinstance(share, float) and share >= _NEARLY


def to_dates(values: pl.Series, pattern: str) -> pl.Series:
    """Strings as UTC times without a zone, null where they do not fit the format."""
    try:
        times = values.str.to_datetime(pattern, strict=False, time_unit="us")
    except PolarsError:
        return pl.Series(values.name, [None] * len(values), pl.Datetime("us"))
    return _without_zone(times)


def _without_zone(times: pl.Series) -> pl.Series:
    if isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone is not None:
        times = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return times.cast(pl.Datetime("us"))


def convert(values: pl.Series, column: ColumnType) -> Converted:
    """Values as numbers, strings, booleans or times."""
    if column.type == "categorical":
        text = _present(values)
        return Converted(text, pl.repeat(False, len(text), eager=True))
    if column.type == "numeric":
        return _numbers(values)
    given = _present(values) if values.dtype == pl.String else values
    if column.type == "boolean":
        made = _booleans(given)
    elif values.dtype.is_temporal():
        made = _without_zone(given)
    else:
        made = to_dates(to_text(given), column.format or date_format(to_text(given)) or "%Y-%m-%d")
    return Converted(made, made.is_null() & given.is_not_null())


def _booleans(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Boolean:
        return values
    words = to_text(values).str.to_lowercase()
    return words.replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)


def _numbers(values: pl.Series) -> Converted:
    given = _present(values) if values.dtype == pl.String else values
    numbers = given.cast(pl.Float64, strict=False).fill_nan(None)
    bad = (numbers.is_null() & given.is_not_null()) | numbers.is_infinite().fill_null(False)
    if values.dtype.is_float():
        bad = values.is_infinite().fill_null(False)  # NaN is how floats say that there is none
    numbers = numbers.set(bad, None)
    return Converted(numbers.cast(pl.Int64) if _whole(numbers) else numbers, bad)
