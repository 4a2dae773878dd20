"""Files of inputs to predict for: read one by one, so that what cannot be read is told with its place."""

import csv
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from tasks.base import Codec, Upload, files_of
from tasks.parts.archives import Limits, is_clutter, open_archive
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE
from tasks.parts.tables import (
    SHOWN,
    TABLE_FORMATS,
    Faults,
    batches,
    check_names,
    delimiter,
    read_table,
    table_format,
)

Kind = Literal["json", "row", "file"]
"""What each input is: JSON as in a request, a row of a table as JSON, or the bytes of a file."""

MAX_INPUT = 64 << 20
"""Bytes of a line, or of a file in an archive: room for the largest image in base64."""
SCHEMA = {
    "kind": pl.String,
    "line": pl.Int64,
    "name": pl.String,
    "input": pl.Binary,
    "problems": pl.String,
}
_AT_ONCE = 512
_ZIP = b"PK\x03\x04"


class Entry(NamedTuple):
    """One input of a file, or what is wrong with it."""

    kind: Kind
    line: int | None
    """Where it begins in a file of lines, counted from 1; the row in a Parquet file."""
    name: str | None
    """Its path in an archive."""
    input: bytes | None
    problems: Sequence[Problem] = ()

    @property
    def place(self) -> tuple[str | int, ...]:
        """Where it is, as problems say it."""
        return ("line", self.line) if self.name is None and self.line else (self.name or "",)


def read_inputs(upload: Upload, input_type: type[BaseModel]) -> pl.DataFrame:
    """The inputs of a file, in the columns of `SCHEMA`.

    JSON Lines hold inputs as a request does, tables rows; a zip holds files, where inputs are files.
    What is wrong with one input is among its `problems`. Raises Invalid for what makes the whole file
    unreadable, or unsafe.
    """
    format = _format_of(upload, input_type)
    frames = [
        pl.DataFrame([(*entry[:4], _text(entry)) for entry in some], schema=SCHEMA, orient="row")
        for some in batches(_entries(upload, format), _AT_ONCE)
    ]
    if not frames:
        raise Invalid(Problem((), "the file has no inputs", upload.name, "one input or more"))
    return pl.concat(frames)


def entries(frame: pl.DataFrame) -> Iterator[Entry]:
    """The inputs again that `read_inputs` gave."""
    for kind, line, name, data, problems in frame.iter_rows():
        found = json.loads(problems) if problems else []
        yield Entry(kind, line, name, data, [Problem(tuple(loc), *rest) for loc, *rest in found])


def read_entry(entry: Entry, codec: Codec, input_type: type[BaseModel]) -> Any:
    """One input of a file, as the codec has read it. Raises Invalid, with its place in the file."""
    if entry.problems:
        raise Invalid(*entry.problems)
    assert entry.input is not None
    value: Any = entry.input if entry.kind == "file" else from_json(entry.input)
    try:
        if entry.kind == "row":
            fields = input_type.model_fields
            known = codec.input_fields(input_type)
            optional = {name for name in known if name in fields and not fields[name].is_required()}
            value = _of_columns(value, known, optional)
        return codec.read_input(value)
    except Invalid as error:
        problems = (p._replace(loc=(*entry.place, *p.loc)) for p in error.problems)
        raise Invalid(*problems) from None


def _of_columns(
    row: dict[str, Any], names: Iterable[str], optional: Container[str]
) -> dict[str, Any]:
    """A row without the columns that are no part of an input: tables have some for people, too.

    Raises Invalid for a column that is missing and not `optional`.
    """
    found = list(row)[:SHOWN]
    columns = [name for name in names if name in row or name not in optional]
    missing = [name for name in columns if name not in row]
    if missing:
        raise Invalid(*(Problem((name,), "the column is missing", found, name) for name in missing))
    return {name: row[name] for name in columns}


def _text(entry: Entry) -> str | None:
    if not entry.problems:
        return None
    return to_json(entry.problems, inf_nan_mode="null", fallback=str).decode()


def _format_of(upload: Upload, input_type: type[BaseModel]) -> str:
    """The format of a file. Raises Invalid for one that the task's inputs cannot come in."""
    with upload.path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip and files_of(input_type):
        return "zip"
    if upload.path.stat().st_size == 0:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(TABLE_FORMATS)))
    return table_format(upload)


def _entries(upload: Upload, format: str) -> Iterator[Entry]:
    match format:
        case "zip":
            return _of_archive(upload.path)
        case "jsonl":
            return _of_json_lines(upload.path)
        case "parquet":
            return _of_parquet(upload)
    return _of_csv(upload.path, "\t" if format == "tsv" else None)


def _of_archive(path: Path) -> Iterator[Entry]:
    with open_archive(path, Limits(member=MAX_INPUT)) as archive:
        for name in archive.names:
            if is_clutter(name):
                continue
            try:
                yield Entry("file", None, name, archive.read(name))
            except Invalid as error:
                yield Entry("file", None, name, None, error.problems)


def _of_json_lines(path: Path) -> Iterator[Entry]:
    for number, raw in _raw_lines(path):
        line = raw.strip()
        if len(raw) > MAX_INPUT:
            yield Entry("json", number, None, None, [_too_long(number)])
        elif line:
            try:
                from_json(line, allow_inf_nan=False)
                yield Entry("json", number, None, line)
            except ValueError as error:
                allowed = "an input of a request per line"
                problem = Problem(("line", number), "not JSON", str(error), allowed)
                yield Entry("json", number, None, None, [problem])


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers; of one that is too long, no more than shows it."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_INPUT + 1):
            number += 1
            yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            while len(raw) > MAX_INPUT and not raw.endswith(b"\n"):
                raw = file.readline(MAX_INPUT + 1) or b"\n"


def _too_long(line: int) -> Problem:
    return Problem(("line", line), "the line is too long", None, f"at most {MAX_INPUT} bytes")


def _of_parquet(upload: Upload) -> Iterator[Entry]:
    table = read_table(upload, "parquet")
    for part in table.iter_slices(_AT_ONCE):
        for line, row in zip(part[LINE], part.drop(LINE).iter_rows(named=True), strict=True):
            yield Entry("row", line, None, to_json(row, inf_nan_mode="null", fallback=str))


def _of_csv(path: Path, mark: str | None) -> Iterator[Entry]:
    mark = mark or _delimiter(next(_lines(path), ""))
    quoting = csv.QUOTE_NONE if mark == "\t" and _misquoted(path) else csv.QUOTE_MINIMAL
    rows = _rows(path, mark, quoting)
    names = _names(next(rows, (1, [])))
    for line, cells in rows:
        problem = cells if isinstance(cells, Problem) else _fault(line, cells, names)
        if problem is not None:
            yield Entry("row", line, None, None, [problem])
        else:
            yield Entry("row", line, None, to_json(dict(zip(names, cells, strict=True))))


def _delimiter(header: str) -> str:
    try:
        return delimiter(header)
    except csv.Error:
        return ","


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file; bytes that are not UTF-8 are half surrogates. Raises Invalid for an endless one."""
    for number, raw in _raw_lines(path):
        if len(raw) > MAX_INPUT:
            raise Invalid(_too_long(number))
        yield raw.decode(errors="surrogateescape")


def _rows(path: Path, mark: str, quoting: int) -> Iterator[tuple[int, list[str] | Problem]]:
    """Each row, or what is wrong with it, and the line it begins on; blank lines are skipped."""
    reader = csv.reader(_lines(path), delimiter=mark, quoting=quoting, strict=True)  # type: ignore[arg-type]
    while True:
        begin = reader.line_num + 1
        try:
            row: list[str] | Problem = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = Problem(
                ("line", begin), "broken quoting", str(error), 'quotes inside doubled: ""'
            )
        if row:
            yield begin, row


def _misquoted(path: Path) -> bool:
    """Whether quotes in a TSV file are nothing but characters: many such files know no quoting."""
    return any(isinstance(row, Problem) for _, row in _rows(path, "\t", csv.QUOTE_MINIMAL))


def _names(header: tuple[int, list[str] | Problem]) -> list[str]:
    """The names of the columns. Raises Invalid when they are not names of their own."""
    _, cells = header
    if isinstance(cells, Problem):
        raise Invalid(cells)
    faults, names = Faults(), [name.strip() for name in cells]
    check_names(names, faults)
    faults.check()
    return names


def _fault(line: int, cells: Any, names: Sequence[str]) -> Problem | None:
    """What is wrong with a row."""
    if len(cells) != len(names):
        return Problem(("line", line), "wrong number of cells", len(cells), len(names))
    for name, cell in zip(names, cells, strict=True):
        if not cell.isascii() and any("\ud800" <= mark <= "\udfff" for mark in cell):
            return Problem(("line", line, name), "not UTF-8", ascii(cell)[:80], "UTF-8 text")
    return None
