"""CSV, TSV, JSONL and Parquet files to frames, with every fault named by its line."""

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import polars as pl
from polars.exceptions import PanicException, PolarsError

from tasks.base import Upload
from tasks.parts.examples import height
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.splits import LINE, shown

TABLE_FORMATS: dict[str, str] = {
    "csv": "Comma-separated values in UTF-8 with a header line; semicolons and pipes work too.",
    "tsv": "Tab-separated values in UTF-8 with a header line.",
    "jsonl": "One JSON object per line, its keys the column names.",
    "parquet": "Apache Parquet with plain columns: numbers, strings, booleans, dates.",
}
MAX_CELL = 1 << 20
STORABLE = f"at most {MAX_CELL:,} characters, without NUL and halves of surrogate pairs"
"""What texts may be, as problems say it."""
MAX_LINE = 4 << 20
MAX_COLUMNS = 10_000
MAX_CELLS = 200_000_000
SHOWN = 50
"""Names listed in a problem."""
_CHUNK = 10_000
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
T = TypeVar("T")
# The limit belongs to the whole process; nobody else here reads CSV.
csv.field_size_limit(MAX_CELL)


def read_table(upload: Upload, asked: str | None = None, *, lists: bool = False) -> pl.DataFrame:
    """The rows of a file, and a column `LINE` that says where each began.

    Cells of CSV and TSV are strings as they stand there; JSONL and Parquet keep their types, with
    strings where a column mixes them; with `lists`, cells of these may be lists of texts. Raises Invalid,
    naming each faulty line.
    """
    if asked is not None and asked not in TABLE_FORMATS:
        raise Invalid(Problem(("format",), "no such format", asked, sorted(TABLE_FORMATS)))
    if upload.path.stat().st_size == 0:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(TABLE_FORMATS)))
    format = asked or table_format(upload)
    read = (
        partial(_LISTING[format], lists=True) if lists and format in _LISTING else _READERS[format]
    )
    table = read(upload.path)
    if table.height == 0:
        raise Invalid(Problem((), "the file has no rows", upload.name, "a header and rows"))
    return table


def table_format(upload: Upload) -> str:
    """The format of a file by its content, else by its name. Raises Invalid for other kinds of files."""
    with upload.path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise Invalid(Problem((), "not a table", f"{upload.name}: {kind}", TABLE_FORMATS))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return "jsonl"
    by_name = _SUFFIXES.get(Path(upload.name).suffix.lower())
    if by_name is not None:
        return by_name
    return "tsv" if delimiter(head.decode("utf-8", "replace")) == "\t" else "csv"


class Faults:
    """Problems found so far; ends the reading when there are too many to list."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(
        self, loc: tuple[str | int, ...], msg: str, found: Any = None, allowed: Any = None
    ) -> None:
        self.found.append(Problem(loc, msg, found, allowed))
        if len(self.found) >= Invalid.LIMIT:
            self.check()

    def check(self) -> None:
        if self.found:
            raise Invalid(*self.found)


def text_lines(path: Path) -> Generator[str, None, None]:
    """The lines of a UTF-8 file with their ends, without a byte order mark.

    Raises Invalid for bytes that are not UTF-8, NUL bytes and endless lines, naming line and byte.
    """
    with path.open("rb") as file:
        yield from decoded(file)


def decoded(file: BinaryIO) -> Iterator[str]:
    """The lines of an open file, as `text_lines` gives them. Raises Invalid like it."""
    faults = Faults()
    for number, raw in enumerate(_raw_lines(file), start=1):
        line = _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, number, faults)
        if not faults.found:
            yield line
    faults.check()


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(MAX_LINE + 1):
        yield raw


def _decode(raw: bytes, number: int, faults: Faults) -> str:
    if len(raw) > MAX_LINE:
        faults.add(("line", number), "the line is too long", allowed=f"at most {MAX_LINE} bytes")
        faults.check()
    if b"\0" in raw:
        faults.add(("line", number), "a NUL byte", f"at byte {raw.index(0) + 1} of the line")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        faults.add(("line", number), "not UTF-8", byte, "UTF-8 text")
        return ""


def batches(items: Iterator[T], size: int = _CHUNK) -> Iterator[list[T]]:
    """So many items at a time, in their order."""
    while some := list(islice(items, size)):
        yield some


# CSV and TSV


def delimiter(head: str) -> str:
    """What stands between cells: whatever cuts the header into most cells; a comma if nothing does."""
    header = head.removeprefix("\ufeff").splitlines()[:1]
    cells = {mark: len(next(csv.reader(header, delimiter=mark), [])) for mark in ",;\t|"}
    return max(cells, key=lambda mark: cells[mark])


def _read_csv(path: Path) -> pl.DataFrame:
    with path.open("rb") as file:
        head = file.readline(MAX_LINE).decode("utf-8", "replace")
    try:
        mark = delimiter(head)
    except csv.Error:
        mark = ","
    return _read_delimited(path, mark, csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> pl.DataFrame:
    """Quotes are read as such, unless that fails: many TSV files know no quoting."""
    try:
        return _read_delimited(path, "\t", csv.QUOTE_MINIMAL)
    except Invalid:
        return _read_delimited(path, "\t", csv.QUOTE_NONE)


def _read_delimited(path: Path, mark: str, quoting: int) -> pl.DataFrame:
    faults = Faults()
    rows = _rows(path, mark, quoting, faults)
    names = [name.strip() for name in next(rows, (1, []))[1]]
    check_names(names, faults)
    faults.check()
    sound = (row for row in rows if _fits(row, names, faults))
    chunks = [_chunk(some, names) for some in batches(sound)]
    faults.check()
    return pl.concat(chunks) if chunks else pl.DataFrame({name: [] for name in names})


def _rows(path: Path, mark: str, quoting: int, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """Each row and the line it begins on; blank lines are skipped."""
    # Closed at once when a fault ends the reading, and not whenever memory is tidied up.
    with closing(text_lines(path)) as lines:
        reader = csv.reader(lines, delimiter=mark, quoting=quoting, strict=True)  # type: ignore[arg-type]
        while True:
            begin = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                _broken(begin, str(error), faults)
                continue
            if row:
                yield begin, row


def _broken(line: int, error: str, faults: Faults) -> None:
    if "field larger" in error:
        allowed = f"at most {MAX_CELL} characters"
        faults.add(("line", line), "a cell is too long; is a quote never closed?", None, allowed)
        faults.check()
    elif "unexpected end" in error:
        faults.add(("line", line), "a quote is never closed")
    else:
        faults.add(("line", line), f"broken quoting: {error}", allowed='quotes inside doubled: ""')


def check_names(names: list[str], faults: Faults) -> None:
    if len(names) > MAX_COLUMNS:
        faults.add(("line", 1), "too many columns", len(names), f"at most {MAX_COLUMNS}")
        return
    seen: set[str] = set()
    for place, name in enumerate(names, start=1):
        if not name:
            faults.add(("line", 1, "column", place), "the column has no name", "", "a name")
        elif name in seen or "\0" in name:
            faults.add(
                ("line", 1, "column", place), "not a name of its own", name, "distinct names"
            )
        seen.add(name)


def _fits(row: tuple[int, list[str]], names: list[str], faults: Faults) -> bool:
    line, cells = row
    if len(cells) != len(names):
        faults.add(("line", line), "wrong number of cells", len(cells), len(names))
        return False
    return True


def _chunk(rows: list[tuple[int, list[str]]], names: list[str]) -> pl.DataFrame:
    lines, cells = zip(*rows, strict=True)
    columns = zip(names, zip(*cells, strict=True), strict=True)
    data = {name: pl.Series(name, values, pl.String) for name, values in columns}
    return pl.DataFrame({**data, LINE: pl.Series(LINE, lines, pl.Int64)})


# JSONL


def _read_jsonl(path: Path, lists: bool = False) -> pl.DataFrame:
    faults = Faults()
    sound = (
        (number, found)
        for number, found in objects(path, faults)
        if _is_row(found, number, faults, lists)
    )
    frames = [_frame(some, faults) for some in batches(sound)]
    faults.check()
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def _is_row(found: dict[str, Any], number: int, faults: Faults, lists: bool) -> bool:
    sound = [_check_cell(name, cell, number, faults, lists=lists) for name, cell in found.items()]
    return all(sound)


def objects(
    path: Path, faults: Faults, like: str = '{"column": value, ...}'
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, whatever their values are, and the lines they stand on.

    A line without one becomes a fault, which says that `like` this it would be right.
    """
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            faults.add(("line", number), "not JSON", str(error), "one object per line")
            continue
        if isinstance(found, dict):
            yield number, found
        else:
            faults.add(("line", number), "not an object", short(found), like)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")


def _check_cell(name: str, cell: Any, number: int, faults: Faults, *, lists: bool) -> bool:
    msg = None
    if lists and isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        return all(_check_cell(name, one, number, faults, lists=False) for one in cell)
    if not name or is_unstorable(name):
        msg = "not a name for a column"
    elif isinstance(cell, dict | list):
        msg = "a nested value"
    elif isinstance(cell, str) and is_unstorable(cell):
        msg = "NUL, half a surrogate pair, or too long"
    elif isinstance(cell, int) and not -(2**63) <= cell < 2**63:
        msg = "the whole number is too large"
    elif isinstance(cell, float) and cell - cell != 0:
        msg = "the number is too large"
    if msg is None:
        return True
    faults.add(("line", number, name), msg, short(cell), "text, a number, true, false or null")
    return False


def is_unstorable(text: str) -> bool:
    """Whether a text has NUL, half a surrogate pair, or is too long."""
    if len(text) > MAX_CELL or "\0" in text:
        return True
    return not text.isascii() and any("\ud800" <= mark <= "\udfff" for mark in text)


def _frame(objects: list[tuple[int, dict[str, Any]]], faults: Faults) -> pl.DataFrame:
    names = dict.fromkeys(name for _, found in objects for name in found)
    if len(names) > MAX_COLUMNS:
        faults.add((), "too many columns", len(names), f"at most {MAX_COLUMNS}")
        faults.check()
    columns = {name: _series(name, [found.get(name) for _, found in objects]) for name in names}
    lines = [number for number, _ in objects]
    return pl.DataFrame({**columns, LINE: pl.Series(LINE, lines, pl.Int64)})


def _series(name: str, cells: list[Any]) -> pl.Series:
    kinds = {type(cell) for cell in cells} - {type(None)}
    if list in kinds:
        texts = [[c] if isinstance(c, str) else c if isinstance(c, list) else None for c in cells]
        return pl.Series(name, texts, pl.List(pl.String))
    if len(kinds) <= 1 or kinds == {int, float}:
        return pl.Series(name, cells, strict=False)
    return pl.Series(
        name, [c if c is None or isinstance(c, str) else json.dumps(c) for c in cells], pl.String
    )


# Parquet


def _read_parquet(path: Path, lists: bool = False) -> pl.DataFrame:
    try:
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        _check_parquet(scan, lists)
        table = scan.with_columns(_PLAIN).collect()
    except (PolarsError, PanicException, OSError) as error:
        raise Invalid(Problem((), "not a sound Parquet file", str(error)[:200])) from None
    return table.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE))


_PLAIN = [
    pl.col(pl.Decimal).cast(pl.Float64),
    pl.col(pl.Categorical, pl.Enum).cast(pl.String),
    pl.col(pl.Duration).dt.total_seconds(fractional=True),
]
_ALLOWED = (
    *(pl.String, pl.Boolean, pl.Date, pl.Datetime, pl.Decimal, pl.Categorical, pl.Enum),
    *(pl.Duration, pl.Null),
)


def _check_parquet(scan: pl.LazyFrame, lists: bool) -> None:
    """Refuses what would not fit into memory before it is there."""
    faults = Faults()
    schema = scan.collect_schema()
    check_names(schema.names(), faults)
    for name, kind in schema.items():
        if not (
            kind.is_numeric()
            or isinstance(kind, _ALLOWED)
            or (lists and kind == pl.List(pl.String))
        ):
            faults.add((name,), "a kind of column that cannot be used", str(kind), "plain values")
    rows = height(scan)
    if rows * len(schema) > MAX_CELLS:
        faults.add((), "too many cells", rows * len(schema), f"at most {MAX_CELLS}")
    faults.check()
    strings = [name for name, kind in schema.items() if kind == pl.String]
    sizes = scan.select(
        *(pl.col(name).str.len_bytes().max() for name in strings),
        *(pl.col(name).str.len_bytes().sum().alias(f"\0{name}") for name in strings),
    ).collect(engine="streaming")
    for name in strings:
        if (sizes[name][0] or 0) > MAX_CELL or sizes[f"\0{name}"][0] > 16 * MAX_CELLS:
            faults.add((name,), "cells are too long", sizes[name][0], f"at most {MAX_CELL} bytes")
    faults.check()
    nul = scan.select(pl.col(name).str.contains("\0", literal=True).any() for name in strings)
    for name, holds in nul.collect(engine="streaming").to_dict(as_series=False).items():
        if holds[0]:
            faults.add((name,), "a NUL character in a cell")
    faults.check()


_READERS: Mapping[str, Callable[[Path], pl.DataFrame]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
_LISTING = {"jsonl": _read_jsonl, "parquet": _read_parquet}


# Which column of the file is which of the task's


def pick_column(
    frame: pl.DataFrame, role: str, mapping: Mapping[str, str], usual: Sequence[str]
) -> str | None:
    """The file's column for a task's `role`: the one asked for, else the first of the `usual` names.

    None when neither is there. Raises Invalid when the one asked for is missing.
    """
    columns = shown(frame)
    asked = mapping.get(role)
    if asked is not None and asked not in columns:
        loc = ("options", "column_mapping", role)
        raise Invalid(Problem(loc, "no such column in the file", asked, columns[:SHOWN]))
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    return asked or next((by_name[name] for name in usual if name in by_name), None)


def check_mapping(mapping: Mapping[str, str], roles: Sequence[str]) -> None:
    """Raises Invalid for a mapping of columns that the task does not have."""
    problems = [
        Problem(("options", "column_mapping", role), "not a column of this task", role, list(roles))
        for role in mapping
        if role not in roles
    ]
    if problems:
        raise Invalid(*problems)
