"""Corpora of documents, and queries with the documents that answer them: read from uploads, every fault named."""

import csv
import json
import math
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from tasks.base import DatasetOptions, Upload
from tasks.parts.archives import Archive, is_clutter, open_archive
from tasks.parts.column_types import to_text
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.splits import LINE
from tasks.parts.tables import (
    MAX_LINE,
    Faults,
    check_mapping,
    is_unstorable,
    pick_column,
    read_table,
)
from tasks.parts.texts import check_present, choose_columns
from tasks.parts.vocabulary import MAX_TEXT

CORPUS_FORMATS: dict[str, str] = {
    "zip": "A zip in the layout of BEIR: `corpus.jsonl` (`_id`, `title`, `text`) and, where there are any, "
    "`queries.jsonl` (`_id`, `text`) and judgements, `qrels/train.tsv`, `qrels/dev.tsv`, `qrels/test.tsv` or one "
    "`qrels.tsv` (query id, document id, and a grade: 0 is not relevant, higher is better).",
    "csv": "Pairs of a `query` and the `text` that answers it, perhaps with `id`, `title` and `grade`; or documents "
    "alone, without a `query`.",
    "tsv": "The same, separated by tabs.",
    "jsonl": "The same, one JSON object per line.",
    "parquet": "The same, in Apache Parquet.",
}
MOST_DOCUMENTS = 200_000
MOST_CHARACTERS = 256 << 20
"""Of all documents together: they are part of the model."""
USUAL = {
    "query": ("query", "question", "anchor", "search"),
    "text": ("text", "document", "passage", "answer", "positive", "body", "content"),
    "id": ("id", "_id", "document_id", "doc_id"),
    "title": ("title", "headline"),
    "grade": ("grade", "score", "relevance", "gain", "label"),
}
DOCUMENT: dict[str, Any] = {"id": pl.String, "title": pl.String, "text": pl.String}
QUERY: dict[str, Any] = {
    "query": pl.String,
    "relevant": pl.List(pl.Struct({"id": pl.String, "gain": pl.Float64})),
}
_ZIP = b"PK\x03\x04"
_SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "valid": "validation"}
_SPLITS |= {"val": "validation", "test": "test", "": "file"}
_LAYOUT = "corpus.jsonl, queries.jsonl, qrels/train.tsv, qrels/dev.tsv, qrels/test.tsv or qrels.tsv"


class Corpus(NamedTuple):
    """What an upload holds: documents, and queries by the split that it says they are for."""

    documents: pl.DataFrame
    """In the columns of `DOCUMENT`, no id twice."""
    queries: dict[str, pl.DataFrame]
    """In the columns of `QUERY`, by train, validation, test or file, and perhaps one that says the split."""
    unanswered: int = 0
    """Queries left out as no document is relevant for them."""


def read_corpus(upload: Upload, options: DatasetOptions) -> Corpus:
    """What a zip or a table holds. Raises Invalid, naming file and line of everything wrong."""
    if options.format is not None and options.format not in CORPUS_FORMATS:
        problem = Problem(("format",), "no such format", options.format, sorted(CORPUS_FORMATS))
        raise Invalid(problem)
    check_mapping(options.column_mapping, list(USUAL))
    with upload.path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip or options.format == "zip":
        with open_archive(upload.path) as archive:
            return _of_archive(archive)
    return _of_table(read_table(upload, options.format), options)


def check_size(documents: pl.DataFrame) -> None:
    """Raises Invalid for too few documents to tell apart, and for more than an index holds."""
    characters = documents["text"].str.len_chars().sum()
    problems = []
    if documents.height < 2:
        problems.append(Problem((), "too few documents", documents.height, "at least 2"))
    if documents.height > MOST_DOCUMENTS:
        allowed = f"at most {MOST_DOCUMENTS:,}"
        problems.append(Problem((), "too many documents", documents.height, allowed))
    if characters > MOST_CHARACTERS:
        allowed = f"at most {MOST_CHARACTERS:,} characters together"
        problems.append(Problem((), "too much text in the documents", characters, allowed))
    if problems:
        raise Invalid(*problems)


# Tables


def _of_table(frame: pl.DataFrame, options: DatasetOptions) -> Corpus:
    mapping = options.column_mapping
    pairs = pick_column(frame, "query", mapping, USUAL["query"]) is not None
    needed = ("query", "text") if pairs else ("text",)
    columns = choose_columns(frame, mapping, {role: USUAL[role] for role in needed})
    for role in ("id", "title", "grade"):
        name = pick_column(frame, role, mapping, USUAL[role])
        if name is not None and name != options.split.by:
            columns[role] = to_text(frame[name]).alias(role)
    table = pl.DataFrame([*columns.values(), frame[LINE]])
    check_present(table, *needed)
    title = columns.get("title", pl.Series("title", [None] * table.height, pl.String))
    table = table.with_columns(title.fill_null(""))
    made = [_id_of(*texts) for texts in table.select("title", "text").iter_rows()]
    given = columns["id"].fill_null("") if "id" in columns else pl.Series("id", [""] * len(made))
    table = table.with_columns(
        pl.Series("id", [mine or other for mine, other in zip(given, made, strict=True)])
    )
    _check_ids(table)
    documents = table.select(*DOCUMENT).unique("id", keep="first", maintain_order=True)
    if not pairs:
        return Corpus(documents, {})
    table = table.with_columns(_grades(table))
    by = [frame[name] for name in (options.split.by,) if name in frame.columns]
    judged = table.select("query", "id", "gain", LINE).with_columns(*by)
    others = [
        pl.col(name).first() for name in judged.columns if name not in ("query", "id", "gain")
    ]
    queries = (
        judged.filter(pl.col("gain") > 0)
        .group_by("query", "id", maintain_order=True)
        .agg(pl.col("gain").max(), *others)
        .group_by("query", maintain_order=True)
        .agg(pl.struct("id", "gain").alias("relevant"), *others)
    )
    unanswered = judged["query"].n_unique() - queries.height
    return Corpus(documents, {"file": queries}, unanswered)


def _id_of(title: str, text: str) -> str:
    """An id for a document that came without one: the same for the same text always."""
    return blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()


def _check_ids(table: pl.DataFrame) -> None:
    """Raises Invalid where one id stands for two documents."""
    first: dict[str, tuple[tuple[str, str], int]] = {}
    faults = Faults()
    for id, title, text, line in table.select("id", "title", "text", LINE).iter_rows():
        known, where = first.setdefault(id, ((title, text), line))
        if known != (title, text):
            allowed = f"the document of line {where}, or another id"
            faults.add(("line", line, "id"), "another document has this id", id, allowed)
    faults.check()


def _grades(table: pl.DataFrame) -> pl.Series:
    if "grade" not in table.columns:
        return pl.Series("gain", [1.0] * table.height)
    faults, gains = Faults(), []
    for grade, line in table.select("grade", LINE).iter_rows():
        gains.append(_grade(grade, ("line", line, "grade"), faults))
    faults.check()
    return pl.Series("gain", gains)


def _grade(value: Any, loc: tuple[str | int, ...], faults: Faults) -> float:
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = math.nan
    if not 0 <= grade <= 1e6:
        allowed = "a number: 0 is not relevant, higher is better; leave out what is neither"
        faults.add(loc, "not a grade", value, allowed)
        return 0.0
    return grade


# Archives in the layout of BEIR


def _of_archive(archive: Archive) -> Corpus:
    names = [name for name in archive.names if not is_clutter(name)]
    members: dict[str, str] = {}
    faults = Faults()
    for name in names:
        part = _part_of(name)
        if part is None:
            if PurePosixPath(name).suffix in (".jsonl", ".tsv", ".csv", ".json"):
                faults.add((name,), "not part of the layout", name, _LAYOUT)
        elif part in members:
            faults.add((name,), "a second file for the same", members[part], "one of them")
        else:
            members[part] = name
    if "corpus" not in members and not faults.found:
        faults.add((), "no corpus.jsonl", names[:20], _LAYOUT)
    judged = {split: name for split, name in members.items() if split in _SPLITS.values()}
    if judged and "queries" not in members:
        faults.add((), "there are judgements, but no queries.jsonl", names[:20], _LAYOUT)
    if "file" in judged and len(judged) > 1:
        faults.add(
            (judged["file"],), "beside judgements by split", sorted(judged.values()), "one way"
        )
    faults.check()
    documents = _texts(archive, members["corpus"], faults)
    queries = _texts(archive, members["queries"], faults) if "queries" in members else {}
    faults.check()
    rows = [(id, title, text) for id, (title, text, _) in documents.items()]
    found = {
        split: _judgements(archive, name, queries, documents, faults)
        for split, name in judged.items()
    }
    faults.check()
    frames = {
        split: pl.DataFrame(
            [
                (queries[id][1], [{"id": doc, "gain": gain} for doc, gain in gains.items()])
                for id, gains in by_query.items()
                if gains
            ],
            schema=QUERY,
            orient="row",
        )
        for split, by_query in found.items()
    }
    unanswered = sum(not gains for by_query in found.values() for gains in by_query.values())
    return Corpus(pl.DataFrame(rows, schema=DOCUMENT, orient="row"), frames, unanswered)


def _part_of(name: str) -> str | None:
    """Which part of the layout a member is: corpus, queries, or the split that it judges."""
    path = PurePosixPath(name)
    match path.suffix, path.stem.lower():
        case ".jsonl", "corpus" | "documents":
            return "corpus"
        case ".jsonl", "queries":
            return "queries"
        case ".tsv", stem:
            if path.parent.name.lower() == "qrels":
                return _SPLITS.get(stem)
            if stem.startswith("qrels"):
                return _SPLITS.get(stem.removeprefix("qrels").strip("._-"))
    return None


def _lines(archive: Archive, name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """The lines of a member that hold anything, and their numbers."""
    for number, raw in enumerate(archive.read(name).split(b"\n"), 1):
        if len(raw) > MAX_LINE:
            faults.add((name, "line", number), "the line is too long", len(raw), MAX_LINE)
            continue
        try:
            line = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
            faults.add((name, "line", number), "not UTF-8", byte, "UTF-8 text")
            continue
        if line.strip():
            yield number, line.rstrip("\r")


def _texts(archive: Archive, name: str, faults: Faults) -> dict[str, tuple[str, str, int]]:
    """Title, text and line of each document or query, by its id."""
    found: dict[str, tuple[str, str, int]] = {}
    for number, line in _lines(archive, name, faults):
        loc = (name, "line", number)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(loc, "not JSON", str(error), "one object per line")
            continue
        if not isinstance(value, dict):
            faults.add(loc, "not an object", short(value), '{"_id": ..., "text": ...}')
            continue
        id: Any = value.get("_id", value.get("id"))
        if isinstance(id, int) and not isinstance(id, bool):
            id = str(id)
        fields: dict[str, Any] = {
            "_id": id,
            "title": value.get("title") or "",
            "text": value.get("text"),
        }
        wrong = [(field, given) for field, given in fields.items() if not _is_text(given)]
        for field, given in wrong:
            faults.add((*loc, field), "not a text", short(given), f"up to {MAX_TEXT} characters")
        if wrong:
            continue
        if id in found:
            first = f"an id of its own; line {found[id][2]} has it"
            faults.add((*loc, "_id"), "the same id again", id, first)
            continue
        found[id] = (fields["title"], fields["text"], number)
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and not is_unstorable(value)


def _judgements(
    archive: Archive,
    name: str,
    queries: dict[str, tuple[str, str, int]],
    documents: dict[str, tuple[str, str, int]],
    faults: Faults,
) -> dict[str, dict[str, float]]:
    """The gain of each document that answers a query, by query; one that none answers has none."""
    found: dict[str, dict[str, float]] = {}
    for number, line in _lines(archive, name, faults):
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter="\t"))]
        loc = (name, "line", number)
        if len(cells) == 4:  # as TREC writes them, with an iteration that nobody reads
            del cells[1]
        if len(cells) != 3:
            faults.add(loc, "wrong number of cells", len(cells), "query, document and grade")
            continue
        query, document, grade = cells
        if number == 1 and query not in queries and document not in documents:
            continue  # a header
        for id, known, what in ((query, queries, "query"), (document, documents, "document")):
            if id not in known:
                faults.add((*loc, what), f"there is no such {what}", id, "an id of the file")
        gain = _grade(grade, (*loc, "grade"), faults)
        gains = found.setdefault(query, {})
        if gain > 0:
            gains[document] = max(gain, gains.get(document, 0.0))
    return found
