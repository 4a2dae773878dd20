"""Tables of series: which column is what, and rows at even steps, split by time alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.parts.options import AUTO, Auto
from tasks.base import DatasetOptions, Upload
from tasks.parts.column_types import ColumnType, convert, infer, to_text
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, SPLITS, line_of, split
from tasks.parts.tables import SHOWN, check_mapping, pick_column, read_table
from tasks.parts.times import Step, find_step, read_times, ticks, times_at

Floats = NDArray[np.float64]

SERIES, TIME, FILLED = "\0series", "\0time", "\0filled"
MAX_HORIZON, MAX_CONTEXT = 1_024, 8_192
MOST = 1e30
"""Larger numbers have no squares in what networks compute in."""
USUAL_TIMES = ("time", "timestamp", "date", "datetime", "ds", "day", "week", "month", "year")
USUAL_SERIES = ("series", "series_id", "unique_id", "item_id")
USUAL_TARGETS = ("target", "value", "y")
_SPLIT, _STEP = "\0split", "\0step"


class SeriesOptions(DatasetOptions):
    """How to read series, and how far ahead they are to be forecast."""

    horizon: Auto[Annotated[int, Field(ge=1, le=MAX_HORIZON)]] = Field(
        AUTO, description="Steps to forecast at most; by default what suits the time between rows."
    )
    context: Auto[Annotated[int, Field(ge=2, le=MAX_CONTEXT)]] = Field(
        AUTO,
        description="Steps of the past that a forecast may look at; by default some seasons.",
    )
    season: Auto[Annotated[int, Field(ge=1, le=MAX_CONTEXT)]] = Field(
        AUTO,
        description="After how many steps series repeat themselves, 1 if they do not; by default a day, a week "
        "or a year of steps, whatever suits the time between rows.",
    )
    covariates: list[str] | None = Field(
        None,
        description="Other columns whose past is looked at, too; all columns of numbers if left out.",
    )
    known: list[str] = Field(
        [],
        description="Those covariates that are known ahead: prices, holidays, the weather forecast.",
    )
    gaps: Literal["fill", "ignore"] = Field(
        "fill",
        description="`fill` repeats the value before where a step has no row. `ignore` takes row after row, "
        "whatever time lies between them, as with trading days.",
    )
    most_missing: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of a series' values that may be missing, and are filled.",
    )


def read_rows(upload: Upload, options: SeriesOptions) -> pl.DataFrame:
    """The rows of a file: their series, their times if they have any, the target, and then the covariates.

    Raises Invalid for columns that are not there, or cannot be told, and for cells that are no numbers or times.
    """
    check_mapping(options.column_mapping, ["time", "target", "series"])
    frame = read_table(upload, options.format)
    mapping = options.column_mapping
    named = pick_column(frame, "series", mapping, USUAL_SERIES)
    time = pick_column(frame, "time", mapping, USUAL_TIMES) or _first_if_dates(frame)
    left = [n for n in frame.columns if n not in (named, time, options.split.by, LINE)]
    numeric = [n for n in left if infer(n, frame[n], frame[n]).type in ("numeric", "boolean")]
    target = _target(frame, numeric, mapping)
    covariates = _covariates(left, numeric, target, options)
    problems: list[Problem] = []
    columns = [_numbers(frame, name, problems) for name in (target, *covariates)]
    if time is not None:
        columns.append(_times(frame, time, problems))
    if problems:
        raise Invalid(*problems)
    series = pl.lit("") if named is None else to_text(frame[named]).fill_null("").alias(SERIES)
    kept = [name for name in (options.split.by, LINE) if name in frame.columns]
    return frame.select(*kept, series.alias(SERIES)).with_columns(columns)


def _first_if_dates(frame: pl.DataFrame) -> str | None:
    first = frame.columns[0]
    times = read_times(frame[first])
    return first if times is not None and times.dtype != pl.Int64 else None


def _target(frame: pl.DataFrame, numeric: Sequence[str], mapping: Mapping[str, str]) -> str:
    found = pick_column(frame, "target", mapping, USUAL_TARGETS)
    if found is not None:
        return found
    if len(numeric) == 1:
        return numeric[0]
    msg = "which column is to be forecast?" if numeric else "no column of numbers"
    loc = ("options", "column_mapping", "target")
    raise Invalid(Problem(loc, msg, None, list(numeric[:SHOWN]) or "a column of numbers"))


def _covariates(
    left: Sequence[str], numeric: Sequence[str], target: str, options: SeriesOptions
) -> list[str]:
    offered = [name for name in numeric if name != target]
    wanted = offered if options.covariates is None else options.covariates
    problems = [
        Problem(
            ("options", field, name),
            "not a column of numbers beside the target" if name in left else "no such column",
            name,
            offered[:SHOWN],
        )
        for field, names in (("covariates", wanted), ("known", options.known))
        for name in names
        if name not in offered
    ]
    problems += [
        Problem(("options", "known", name), "not among the covariates", name, wanted[:SHOWN])
        for name in options.known
        if name in offered and name not in wanted
    ]
    if problems:
        raise Invalid(*problems)
    return list(dict.fromkeys(wanted))


def _numbers(frame: pl.DataFrame, name: str, problems: list[Problem]) -> pl.Series:
    """A column as numbers, null where missing."""
    kind = infer(name, frame[name], frame[name]).type
    column = ColumnType(name=name, type="boolean" if kind == "boolean" else "numeric")
    values, bad = convert(frame[name], column)
    if column.type == "numeric":
        bad = bad | (values.cast(pl.Float64).abs() > MOST).fill_null(False)
    problems += [
        Problem(
            ("line", line_of(frame, row), name), "not a number", str(frame[name][row]), "a number"
        )
        for row in bad.arg_true()[: Invalid.LIMIT]
    ]
    return values.cast(pl.Float64)


def _times(frame: pl.DataFrame, name: str, problems: list[Problem]) -> pl.Series:
    allowed = "dates, times, months such as 2024-05, or whole numbers"
    times = read_times(frame[name])
    if times is None:
        problems.append(Problem((name,), "the column has no times", str(frame[name][0]), allowed))
        return pl.Series(TIME, [0] * frame.height)
    problems += [
        Problem(("line", line_of(frame, row), name), "not a time", str(frame[name][row]), allowed)
        for row in times.is_null().arg_true()[: Invalid.LIMIT]
    ]
    return times.alias(TIME)


def variables(frame: pl.DataFrame, options: DatasetOptions) -> list[str]:
    """The columns that are forecast or looked at, the target first."""
    return [n for n in frame.columns if not n.startswith("\0") and n != options.split.by]


# Rows at even steps


class Timeline(NamedTuple):
    """One series: its rows in the order of time, and how many of its steps are in each split."""

    rows: pl.DataFrame
    splits: dict[str, int]


def by_time(frames: Mapping[str, pl.DataFrame], options: SeriesOptions) -> dict[str, pl.DataFrame]:
    """The splits, each with rows at even steps, `FILLED` where a value was missing; no split looks ahead.

    What is not a file of its own is cut off from the end of each series. Raises Invalid for times that occur twice,
    lie between steps or overlap another split, for too many missing values, and for series that are too short.
    """
    whole = _joined(frames, options)
    parts = whole.partition_by(SERIES, maintain_order=True)
    given = [name for name in SPLITS if name in set(whole[_SPLIT])]
    if TIME in whole.columns:
        parts = [part.sort(TIME, maintain_order=True) for part in parts]
        _check_order(parts)
    step = None
    if TIME in whole.columns and options.gaps == "fill":
        step = find_step([part[TIME] for part in parts])
    problems: list[Problem] = []
    lines = [line for part in parts if (line := _even(part, step, options, problems)) is not None]
    if problems:
        raise Invalid(*problems)
    cut = [Timeline(rows, _cut(rows, given, options)) for rows in lines]
    found = {name: [r for line in cut for r in _part(line, name)] for name in SPLITS}
    return {name: pl.concat(some).drop(_SPLIT) for name, some in found.items() if some}


def _joined(frames: Mapping[str, pl.DataFrame], options: SeriesOptions) -> pl.DataFrame:
    """All rows below each other, with the split they were given for, `file` for none."""
    if "file" in frames and options.split.by:
        frames = split(frames, options.split, None)
    first = next(iter(frames.values()))
    names = [n for n in first.columns if n != options.split.by]
    problems = [
        Problem((name,), "the column is missing", column, variables(first, options)[:SHOWN])
        for name, frame in frames.items()
        for column in names
        if column not in frame.columns
    ]
    problems = problems or [
        Problem((name,), "its times are of another kind", str(frame[TIME][0]), str(first[TIME][0]))
        for name, frame in frames.items()
        if TIME in names and frame.schema[TIME] != first.schema[TIME]
    ]
    if problems:
        raise Invalid(*problems)
    return pl.concat(
        frame.select(names).with_columns(pl.lit(name).alias(_SPLIT))
        for name, frame in sorted(frames.items(), key=lambda item: _place(item[0]))
    )


def _place(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else -1


def _check_order(parts: Sequence[pl.DataFrame]) -> None:
    """Refuses times that occur twice, and splits that do not follow each other."""
    problems: list[Problem] = []
    for part in parts:
        times, places = (
            part[TIME],
            part[_SPLIT].replace_strict({n: _place(n) for n in [*SPLITS, "file"]}),
        )
        for row in (times == times.shift()).fill_null(False).arg_true():
            msg = "the same time twice; are there several series?"
            allowed = "one row for each time; options.column_mapping.series tells series apart"
            problems.append(_at(part, int(row), msg, allowed))
        for row in (places < places.shift()).fill_null(False).arg_true()[:1]:
            allowed = "train before validation, validation before test"
            problems.append(_at(part, int(row), "this split begins before another ends", allowed))
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)


def _at(part: pl.DataFrame, row: int, msg: str, allowed: str) -> Problem:
    series = part[SERIES][row]
    found = f"{part[TIME][row]}{f' of {series}' if series else ''}"
    return Problem((part[_SPLIT][row], "line", line_of(part, row)), msg, found, allowed)


def _even(
    part: pl.DataFrame, step: Step | None, options: SeriesOptions, problems: list[Problem]
) -> pl.DataFrame | None:
    """The rows of a series with one for each step, values filled from the one before; None with a problem."""
    target = variables(part.drop(_SPLIT), options)[0]
    there = part[target].is_not_null().arg_true()
    where = (part[_SPLIT][0], "series", part[SERIES][0] or target)
    if not len(there):
        problems.append(Problem(where, "no value at all", None, "numbers"))
        return None
    # Before the first value there is nothing to learn, and behind the last one nothing to judge by.
    part = part[int(there[0]) : int(there[-1]) + 1]
    positions = np.arange(part.height)
    if step is not None:
        moved = ticks(part[TIME], step) - ticks(part[TIME], step)[0]
        uneven = np.flatnonzero(moved % step.count)
        if len(uneven):
            allowed = f"rows {step} apart; options.gaps `ignore` takes row after row"
            problems += [
                _at(part, int(row), "between the steps of its series", allowed)
                for row in uneven[: Invalid.LIMIT]
            ]
            return None
        positions = moved // step.count
    steps = int(positions[-1]) + 1
    missing = steps - part.height + part[target].null_count()
    if missing > options.most_missing * steps:
        allowed = (
            f"at most {options.most_missing:.0%}; options.most_missing, or options.gaps `ignore`"
        )
        problems.append(
            Problem(where, "too many values are missing", f"{missing} of {steps}", allowed)
        )
        return None
    return _filled(part, step, positions, steps, target)


def _filled(
    part: pl.DataFrame, step: Step | None, positions: NDArray[np.int64], steps: int, target: str
) -> pl.DataFrame:
    rows = pl.DataFrame({_STEP: np.arange(steps)}).join(
        part.drop(LINE, strict=False).with_columns(pl.Series(_STEP, positions)),
        on=_STEP, how="left", maintain_order="left",
    )  # fmt: skip
    if step is not None:
        times = times_at(part[TIME][:1], step, np.arange(steps))
        rows = rows.with_columns(times.alias(TIME))
    return rows.with_columns(pl.col(target).is_null().alias(FILLED)).select(
        # Where a covariate begins later, its first value stands in.
        pl.all().exclude(_STEP).forward_fill().backward_fill()
    )


def _cut(rows: pl.DataFrame, given: Sequence[str], options: SeriesOptions) -> dict[str, int]:
    """How many steps of a series are in each split."""
    held, tested = options.split.fraction, options.split.test_fraction
    if given:
        sizes = {name: int((rows[_SPLIT] == name).sum()) for name in given}
        whole, tested = sizes["train"], 0.0
    else:
        whole = rows.height
        sizes = {"train": _share(1 - tested, whole), "test": whole - _share(1 - tested, whole)}
    if held + tested >= 1:
        loc, allowed = ("options", "split", "test_fraction"), "fraction + test_fraction below 1"
        raise Invalid(Problem(loc, "nothing would be left to train on", held + tested, allowed))
    if "validation" not in sizes:
        kept = _share(1 - held - tested, whole)
        sizes |= {"train": kept, "validation": sizes["train"] - kept}
    return {name: sizes[name] for name in SPLITS if sizes.get(name)}


def _share(share: float, steps: int) -> int:
    return int(share * steps + 1e-9)


def _part(line: Timeline, name: str) -> Iterator[pl.DataFrame]:
    start = 0
    for split_name, steps in line.splits.items():
        if split_name == name and steps:
            yield line.rows[start : start + steps]
        start += steps


def values_of(rows: pl.DataFrame, names: Sequence[str]) -> Floats:
    """The variables (N, V) of rows."""
    return rows.select(names).to_numpy(order="c").astype(np.float64)
