"""Series that are labelled as a whole: read from uploads and requests, and as columns of tensors."""

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError

from tasks.base import DatasetOptions, Upload
from tasks.parts.column_types import MISSING, to_text
from tasks.parts.columns import Ragged
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.splits import LINE
from tasks.parts.tables import (
    MAX_CELLS,
    Faults,
    batches,
    check_mapping,
    delimiter,
    is_unstorable,
    objects,
    table_format,
    text_lines,
)

Floats = NDArray[np.float64]

FORMATS: dict[str, str] = {
    "jsonl": 'One JSON object per line: `{"values": [[0.1, 2.0], ...], "label": "walk"}`, a list of the channels for '
    "each step, or plain numbers where there is one channel. Series may have different lengths.",
    "parquet": "The same in Apache Parquet: `values` is a column of lists, `label` one of plain values.",
    "tsv": "As in the UCR archive: a series per line without a header, its label first, then its values, separated "
    "by tabs. One channel; shorter series end in empty cells or NaN.",
    "csv": "The same, separated by commas.",
}
USUAL = {"values": ("values", "series", "x", "data"), "label": ("label", "class", "target", "y")}
MAX_STEPS, MAX_CHANNELS = 100_000, 1_024
MOST = 1e30
"""Larger numbers are no measurements, and have no squares."""
_LIKE = '{"values": [1, 2, ...], "label": "..."}'
_WANTED = "numbers, or a list of as many numbers for each step"
_AT_ONCE = 10_000


class Read(NamedTuple):
    """One series of a file."""

    line: int
    values: Floats
    """(T, C)"""
    label: Any
    split: Any


def read_series(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    """The series of a file: their `values` (T * C), `steps`, `label`, and perhaps a column of splits.

    Raises Invalid, naming each faulty line, and series that differ in their channels.
    """
    check_mapping(options.column_mapping, list(USUAL))
    if options.format is not None and options.format not in FORMATS:
        raise Invalid(Problem(("format",), "no such format", options.format, sorted(FORMATS)))
    if upload.path.stat().st_size == 0:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(FORMATS)))
    format, faults = options.format or table_format(upload), Faults()
    found = {"jsonl": _of_json, "parquet": _of_parquet}.get(format, _of_lines)
    frames = [_frame(some, options) for some in batches(found(upload, options, faults), _AT_ONCE)]
    faults.check()
    if not frames:
        raise Invalid(Problem((), "the file has no series", upload.name, "one or more"))
    frame = pl.concat(frames, how="vertical_relaxed")
    _check_channels(frame)
    return frame


def as_series(value: Any) -> Floats:
    """Numbers, or lists of numbers for each step, as (T, C). Raises Invalid."""
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        found = np.zeros(0, dtype=object)
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2) or _has_truths(value):
        raise Invalid(_culprit(value))
    if not (np.abs(found.astype(np.float64)) <= MOST).all():
        raise Invalid(_culprit(value))
    if found.size == 0:
        raise Invalid(Problem((), "no values", short(value), _WANTED))
    steps = found.astype(np.float64).reshape(len(found), -1)
    if steps.shape[0] > MAX_STEPS or steps.shape[1] > MAX_CHANNELS:
        allowed = f"at most {MAX_STEPS} steps of {MAX_CHANNELS} channels"
        raise Invalid(Problem((), "too long or too wide", list(steps.shape), allowed))
    return steps


def _has_truths(value: Any) -> bool:
    """Whether true or false stand among the numbers."""
    kinds = set(map(type, value))
    return bool in (kinds if list not in kinds else set(map(type, chain.from_iterable(value))))


def _culprit(value: Any) -> Problem:
    """Which step is none."""
    if not isinstance(value, list) or not value:
        return Problem((), "no values", short(value), _WANTED)
    width = len(value[0]) if isinstance(value[0], list) else None
    for place, step in enumerate(value):
        numbers = step if isinstance(step, list) else [step]
        if (len(step) if isinstance(step, list) else None) != width:
            return Problem((place,), "not as many channels as the first step", short(step), width)
        for number in numbers:
            sound = isinstance(number, int | float) and not isinstance(number, bool)
            if not sound or number - number != 0:
                return Problem((place,), "not a finite number", short(number), _WANTED)
            if abs(number) > MOST:
                return Problem((place,), "too large", short(number), f"at most {MOST:g}")
    return Problem((), "no series", short(value), _WANTED)


def _of_json(upload: Upload, options: DatasetOptions, faults: Faults) -> Iterator[Read]:
    for line, found in objects(upload.path, faults, _LIKE):
        names = {role: _key(role, list(found), options) for role in USUAL}
        lacking = [role for role, name in names.items() if name not in found]
        for role in lacking:
            faults.add(("line", line), "the object lacks a key", sorted(found)[:50], names[role])
        if not lacking:
            yield from _read(line, found[names["values"]], found[names["label"]],
                             found.get(options.split.by or ""), faults)  # fmt: skip


def _key(role: str, names: Sequence[str], options: DatasetOptions) -> str:
    """The name of a role in an object or a table: the one asked for, else a usual one that is there."""
    usual = USUAL[role]
    return options.column_mapping.get(role) or next((n for n in usual if n in names), usual[0])


def _read(line: int, values: Any, label: Any, split: Any, faults: Faults) -> Iterator[Read]:
    text = isinstance(label, str) and is_unstorable(label)
    if text or not isinstance(label, str | int | float | None):
        faults.add(("line", line, "label"), "not a label", short(label), "text or a number")
        return
    try:
        yield Read(line, as_series(values), label, split)
    except Invalid as error:
        for problem in error.problems:
            faults.add(("line", line, "values", *problem.loc), *problem[1:])


def _of_parquet(upload: Upload, options: DatasetOptions, faults: Faults) -> Iterator[Read]:
    try:
        scan = pl.scan_parquet(upload.path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        columns = {role: _key(role, schema.names(), options) for role in USUAL}
        for name in columns.values():
            if name not in schema:
                faults.add((), "the column is missing", schema.names()[:50], name)
        faults.check()
        _check_lists(columns["values"], schema[columns["values"]], faults)
        kept = [*columns.values(), *([options.split.by] if options.split.by in schema else [])]
        sizes = scan.select(pl.col(columns["values"]).list.len().cast(pl.Int64))
        longest, total = sizes.select(a=pl.all().max(), b=pl.all().sum()).collect().row(0)
        if (longest or 0) > MAX_STEPS or (total or 0) > MAX_CELLS:
            faults.add((), "too many values", total, f"{MAX_CELLS}, {MAX_STEPS} in a series")
        faults.check()
        table = scan.select(kept).collect()
    except (PolarsError, PanicException, OSError) as error:
        raise Invalid(Problem((), "not a sound Parquet file", str(error)[:200])) from None
    labels = to_text(table[columns["label"]])
    by = options.split.by
    splits = [None] * table.height if by is None or by not in kept else table[by].to_list()
    for line, (values, label, split) in enumerate(
        zip(table[columns["values"]], labels, splits, strict=True), start=1
    ):
        yield from _read(line, None if values is None else values.to_list(), label, split, faults)


def _check_lists(name: str, kind: pl.DataType, faults: Faults) -> None:
    inner = kind.inner if isinstance(kind, pl.List) else None
    if isinstance(inner, pl.List | pl.Array):
        inner = inner.inner
    if inner is None or not inner.is_numeric():
        faults.add((name,), "not a column of lists of numbers", str(kind), _WANTED)
    faults.check()


def _of_lines(upload: Upload, options: DatasetOptions, faults: Faults) -> Iterator[Read]:
    mark = None
    for number, line in enumerate(text_lines(upload.path), start=1):
        if not line.strip():
            continue
        mark = mark or ("\t" if options.format == "tsv" else delimiter(line))
        label, *cells = next(csv.reader([line.strip("\r\n")], delimiter=mark), [""])
        while cells and cells[-1].strip().lower() in MISSING:
            cells.pop()
        yield from _read(number, [_number(cell) for cell in cells], label.strip(), None, faults)


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _frame(some: Sequence[Read], options: DatasetOptions) -> pl.DataFrame:
    columns: dict[str, Any] = {
        LINE: [read.line for read in some],
        "values": pl.Series([read.values.ravel() for read in some], dtype=pl.List(pl.Float64)),
        "steps": [len(read.values) for read in some],
        "label": to_text(pl.Series([_text(read.label) for read in some], dtype=pl.String)),
    }
    if options.split.by is not None:
        given = [None if read.split is None else str(read.split) for read in some]
        columns[options.split.by] = pl.Series(given, dtype=pl.String)
    return pl.DataFrame(columns)


def _text(label: Any) -> str | None:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return None if label is None else str(label)


def _check_channels(frame: pl.DataFrame) -> None:
    channels = channels_of(frame)
    other = (channels != channels[0]).arg_true()
    if len(other):
        raise Invalid(
            *(
                Problem(
                    ("line", frame[LINE][row], "values"),
                    "other channels than the first series",
                    int(channels[row]),
                    int(channels[0]),
                )
                for row in other[: Invalid.LIMIT]
            )
        )


def channels_of(frame: pl.DataFrame) -> pl.Series:
    """How many channels each series has (N,)."""
    return frame["values"].list.len().cast(pl.Int64) // frame["steps"]


def ragged_steps(series: Sequence[Floats], most: int, channels: int) -> Ragged:
    """Series (T, C) of any lengths, cut behind `most` steps, as one column."""
    cut = [steps[:most] for steps in series]
    lengths = torch.tensor([0, *map(len, cut)])
    values = np.concatenate([np.zeros((0, channels)), *cut]).astype(np.float32)
    return Ragged(torch.from_numpy(values), lengths.cumsum(0))
