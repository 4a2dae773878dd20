"""Documents of plain text, and the passages they are cut into for language models."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import polars as pl

from tasks.base import DatasetOptions, Upload
from tasks.parts.archives import Limits, is_clutter, open_archive
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE
from tasks.parts.tables import TABLE_FORMATS, check_mapping, decoded, read_table
from tasks.parts.texts import check_present, choose_columns

FORMATS: dict[str, str] = {
    "text": "Plain text in UTF-8: one document.",
    "zip": "A zip of plain text files: a document each.",
    **{name: f"{says} A document per row, as `text`." for name, says in TABLE_FORMATS.items()},
}
PASSAGE = 256
"""Bytes of a passage at most."""
_SECTIONS, _LEAST_SECTION = 50, 2_000
"""Into how many parts a single document is cut so that some can be held out, and their least characters."""
_LIMITS = Limits(member=256 << 20, total=2 << 30)
_USUAL = {"text": ("text", "content", "document", "body", "sentence", "story", "passage")}
_TABLES = {".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet"}


def read_documents(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    """The documents of a file: their names as `document`, `text`, and whether it `ends` with its last character.

    A file that is one document becomes several, its sections. Raises Invalid.
    """
    check_mapping(options.column_mapping, list(_USUAL))
    format = _format_of(upload, options.format)
    if format == "text":
        with upload.path.open("rb") as file:
            texts = {Path(upload.name).name: "".join(decoded(file))}
    elif format == "zip":
        texts = _read_zip(upload)
    else:
        return _read_rows(upload, options)
    frame = pl.DataFrame({"document": list(texts), "text": list(texts.values()), "ends": True})
    return _sections(frame) if frame.height == 1 else frame


def _format_of(upload: Upload, asked: str | None) -> str:
    if asked is not None and asked not in FORMATS:
        raise Invalid(Problem(("format",), "no such format", asked, sorted(FORMATS)))
    with upload.path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(FORMATS)))
    if asked is not None:
        return asked
    if head == b"PK\x03\x04":
        return "zip"
    is_table = head == b"PAR1" or Path(upload.name).suffix.lower() in _TABLES
    return "table" if is_table else "text"


def _read_zip(upload: Upload) -> dict[str, str]:
    texts, problems = {}, []
    with open_archive(upload.path, _LIMITS) as archive:
        for name in archive.names:
            if is_clutter(name):
                continue
            try:
                texts[name] = "".join(decoded(BytesIO(archive.read(name))))
            except Invalid as error:
                problems += [p._replace(loc=(name, *p.loc)) for p in error.problems]
    if problems:
        raise Invalid(*problems)
    if not texts:
        raise Invalid(Problem((), "the archive is empty", "no files", "text files"))
    return texts


def _read_rows(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    format = options.format if options.format in TABLE_FORMATS else None
    table = read_table(upload, format)
    text = choose_columns(table, options.column_mapping, _USUAL)["text"]
    kept = [name for name in (options.split.by, LINE) if name in table.columns]
    name = pl.format("line {}", pl.col(LINE)).alias("document")
    frame = table.select(*kept, name, text, pl.lit(True).alias("ends"))
    check_present(frame, "text")
    return frame


def _sections(frame: pl.DataFrame) -> pl.DataFrame:
    """Consecutive parts of the only document."""
    name, text = frame["document"][0], frame["text"][0]
    size = max(_LEAST_SECTION, -(-len(text) // _SECTIONS))
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    names = [f"{name}:{number}" for number in range(1, len(parts) + 1)]
    ends = [number == len(parts) for number in range(1, len(parts) + 1)]
    return pl.DataFrame({"document": names, "text": parts, "ends": ends})


def passages(documents: pl.DataFrame) -> pl.DataFrame:
    """What documents are cut into, in their order.

    `start` counts characters of the `document`, `before` is the passage before, "" at the start of a
    document; `ends` says that the document is over behind it. Documents without text have none.
    """
    rows = []
    for name, text, over in documents.select("document", "text", "ends").iter_rows():
        start, before, parts = 0, "", [*_cut(text.encode())]
        for number, part in enumerate(parts, start=1):
            rows.append((name, start, before, part, over and number == len(parts)))
            start, before = start + len(part), part
    schema = {
        "document": pl.String,
        "start": pl.Int64,
        "before": pl.String,
        "text": pl.String,
        "ends": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _cut(text: bytes) -> Iterator[str]:
    """A text in passages. Cuts are before spaces if there are any, where tokens end as well."""
    start = 0
    while start < len(text):
        end = start + PASSAGE
        if end < len(text):
            least = start + PASSAGE // 2
            space = max(text.rfind(mark, least, end) for mark in (b" ", b"\n"))
            end = space if space > 0 else end
            while text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield text[start:end].decode()
        start = end


def longest(frames: Mapping[str, pl.DataFrame]) -> int:
    """The most bytes of a passage with the one before it."""
    whole = pl.col("before").str.len_bytes() + pl.col("text").str.len_bytes()
    return max(int(frame.select(whole.max()).item() or 0) for frame in frames.values())
