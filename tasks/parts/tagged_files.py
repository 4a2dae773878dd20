"""Files of tagged sentences: CoNLL, CoNLL-U, JSON Lines and Parquet to frames, with every fault named by its line."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from polars.exceptions import PanicException, PolarsError

from tasks.base import DatasetOptions, Upload
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.sentences import MAX_TOKENS, cut, starts_in
from tasks.parts.splits import LINE
from tasks.parts.tables import (
    MAX_CELLS,
    STORABLE,
    Faults,
    check_mapping,
    is_unstorable,
    objects,
    table_format,
    text_lines,
)
from tasks.parts.tags import LINES, Span, span_tags

TAGGED_FORMATS: dict[str, str] = {
    "conll": "CoNLL: a token per line, its tag in the last column, blank lines between sentences.",
    "conllu": "CoNLL-U of Universal Dependencies; the tag is UPOS unless another column is chosen.",
    "jsonl": "JSON Lines with `tokens` and `tags`, or with `text` and `spans` "
    '(`[{"start": 0, "end": 3, "label": "person"}]`, in characters).',
    "parquet": "Apache Parquet with the same columns as lists.",
}
USUAL = {
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "pos_tags", "slots", "labels"),
    "text": ("text", "sentence", "utterance", "query"),
    "spans": ("spans", "entities"),
}
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
MAX_LABEL = 200
"""Characters of the label of a span."""
_HEAD = 1 << 16
_NO_TEXTS = "not a list of texts"


class Example(NamedTuple):
    """One sentence of a file."""

    line: int
    """Where it begins, from 1; of Parquet its row."""
    tokens: list[str]
    tags: list[str]
    lines: list[int] | None = None
    """Where each token stands, if not all in the same line."""
    text: str | None = None
    others: Mapping[str, Any] = {}
    """The plain columns that were asked for, by their names."""


def read_tagged(
    upload: Upload, options: DatasetOptions, others: Mapping[str, Sequence[str]] | None = None
) -> pl.DataFrame:
    """Sentences as columns `tokens`, `tags`, `text` (null where tokens came without), and where they stood.

    `others`: columns beside these, by their roles with their usual names; CoNLL has none. Raises Invalid.
    """
    others = others or {}
    check_mapping(options.column_mapping, [*USUAL, *others])
    if upload.path.stat().st_size == 0:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(TAGGED_FORMATS)))
    form = options.format or _found_format(upload)
    faults = Faults()
    if form in ("jsonl", "parquet"):
        found = _parquet(upload.path) if form == "parquet" else objects(upload.path, faults)
        examples = list(_read_objects(found, options, others, faults))
    elif form in ("conll", "conllu") and not others:
        examples = list(_read_columns(upload.path, form, options.column_mapping, faults))
    else:
        allowed = [name for name in TAGGED_FORMATS if not others or "conll" not in name]
        raise Invalid(Problem(("format",), "no format of this task", form, allowed))
    faults.check()
    if not examples:
        raise Invalid(Problem((), "the file has no sentences", upload.name, "tokens and tags"))
    return _frame(examples, [*others, *([options.split.by] if options.split.by else [])])


def _found_format(upload: Upload) -> str:
    """The format by content, and by name between the two of CoNLL."""
    found = table_format(upload)
    if found == "parquet" or (found == "jsonl" and not _is_conll(upload)):
        return found
    with upload.path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    cells = [line.split("\t") for line in head.splitlines() if line and not line.startswith("#")]
    by_content = bool(cells) and len(cells[0]) == len(_CONLLU) and cells[0][0][:1].isdigit()
    return "conllu" if by_content or upload.name.lower().endswith(".conllu") else "conll"


def _is_conll(upload: Upload) -> bool:
    """By name: the first token of a file may be a brace."""
    return upload.name.lower().endswith((".conll", ".conllu", ".bio", ".iob"))


def _frame(examples: Sequence[Example], others: Sequence[str]) -> pl.DataFrame:
    lists = pl.List(pl.String)
    columns = {
        "tokens": pl.Series([e.tokens for e in examples], dtype=lists),
        "tags": pl.Series([e.tags for e in examples], dtype=lists),
        "text": pl.Series([e.text for e in examples], dtype=pl.String),
        LINE: pl.Series([e.line for e in examples], dtype=pl.Int64),
    }
    if examples[0].lines is not None:
        columns[LINES] = pl.Series([e.lines for e in examples], dtype=pl.List(pl.Int64))
    for name in others:
        if name in examples[0].others:
            columns[name] = pl.Series([e.others[name] for e in examples], dtype=pl.String)
    return pl.DataFrame(columns)


# CoNLL


def _read_columns(
    path: Path, form: str, mapping: Mapping[str, str], faults: Faults
) -> Iterator[Example]:
    """Sentences between blank lines; comments, document marks, ranges and empty nodes are skipped."""
    wanted: tuple[int, int] | None = None
    width, mark, begun = 0, None, 0
    tokens: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    for number, line in enumerate(chain(text_lines(path), [""]), start=1):
        line = line.rstrip("\r\n")
        if not line.strip():
            if tokens:
                yield Example(begun, tokens, tags, lines)
            tokens, tags, lines = [], [], []
            continue
        if not width:
            if line.startswith("# "):
                continue
            mark = "\t" if "\t" in line else None
        cells = line.split(mark)
        if cells[0] == "-DOCSTART-" or (line.startswith("#") and len(cells) != (width or 2)):
            continue
        if not width:
            width = len(cells)
            wanted = _chosen(form, width, mapping, number)
        if len(cells) != width:
            faults.add(("line", number), "wrong number of columns", len(cells), width)
            continue
        assert wanted is not None
        token, tag = cells[wanted[0]], cells[wanted[1]]
        if form == "conllu" and not cells[0].isdigit():
            if not cells[0].replace("-", "").replace(".", "").isdigit():
                faults.add(("line", number), "not the number of a token", cells[0], "1, 1-2 or 1.1")
            continue
        if is_unstorable(token):
            faults.add(("line", number), "not a token", short(token), STORABLE)
            continue
        if len(tokens) >= MAX_TOKENS:
            allowed = f"at most {MAX_TOKENS} tokens between blank lines"
            faults.add(("line", number), "too long a sentence", None, allowed)
            continue
        begun = begun if tokens else number
        tokens.append(token)
        tags.append(tag)
        lines.append(number)


def _chosen(form: str, width: int, mapping: Mapping[str, str], line: int) -> tuple[int, int]:
    """The columns of tokens and tags, from 0. Raises Invalid for one that the file lacks."""
    if form == "conllu" and width == len(_CONLLU):
        names = {name: place for place, name in enumerate(_CONLLU)}
        usual = {"tokens": "form", "tags": "upos"}
    else:
        names = {str(place + 1): place for place in range(width)}
        usual = {"tokens": "1", "tags": str(width)}
    problems = [
        Problem(("options", "column_mapping", role), "no such column in the file", name, [*names])
        for role, name in mapping.items()
        if role not in usual or name not in names
    ]
    if form == "conllu" and width != len(_CONLLU):
        allowed = f"{len(_CONLLU)}, with tabs between"
        problems.append(Problem(("line", line), "wrong number of columns", width, allowed))
    elif width < 2:
        problems.append(
            Problem(("line", line), "no column for tags", width, "a token, a tab or space, a tag")
        )
    if problems:
        raise Invalid(*problems)
    found = {role: names[mapping.get(role, name)] for role, name in usual.items()}
    return found["tokens"], found["tags"]


# JSON Lines and Parquet


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        _check_size(scan)
        table = scan.collect()
    except (PolarsError, PanicException, OSError) as error:
        raise Invalid(Problem((), "not a sound Parquet file", str(error)[:200])) from None
    yield from enumerate(table.iter_rows(named=True), start=1)


def _check_size(scan: pl.LazyFrame) -> None:
    """Refuses what would not fit into memory before it is there."""
    sizes: list[pl.Expr] = []
    for name, kind in scan.collect_schema().items():
        column, inner = pl.col(name), kind
        while isinstance(inner, pl.List):
            column, inner = column.explode(), inner.inner  # type: ignore[assignment]
        sizes.append(column.str.len_bytes().sum() if inner == pl.String else 8 * column.len())
    found = [
        int(scan.select(size.alias("size")).collect(engine="streaming").item() or 0)
        for size in sizes
    ]
    if sum(found) > 16 * MAX_CELLS:
        raise Invalid(Problem((), "the file is too large", sum(found), 16 * MAX_CELLS))


def _read_objects(
    given: Iterator[tuple[int, dict[str, Any]]],
    options: DatasetOptions,
    others: Mapping[str, Sequence[str]],
    faults: Faults,
) -> Iterator[Example]:
    names: dict[str, str] = {}
    for line, found in given:
        if not names:
            names = _names(found, options, others)
        example = _of_spans if "spans" in names else _of_tokens
        plain = {role: found.get(names[role]) for role in names if role not in USUAL}
        sound = [_is_text(value, line, names[role], faults) for role, value in plain.items()]
        read = example(line, found, names, faults)
        if read is not None and all(sound):
            yield read._replace(others=plain)


def _names(
    found: Mapping[str, Any], options: DatasetOptions, others: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The keys of the roles, by the first object. Raises Invalid for those that it lacks."""
    usual = {**USUAL, **others}
    names = {
        role: name
        for role, known in usual.items()
        for name in [options.column_mapping.get(role) or next((k for k in known if k in found), "")]
        if name
    }
    complete = next(
        (pair for pair in (("tokens", "tags"), ("text", "spans")) if {*pair} <= names.keys()), None
    )
    lacking = [role for role in others if role not in names]
    problems = [
        Problem(("options", "column_mapping", role), "no such key", name, [*found][:50])
        for role, name in options.column_mapping.items()
        if name not in found
    ]
    if complete is None:
        problems.append(
            Problem((), "no tokens and tags", [*found][:50], "tokens and tags, or text and spans")
        )
    problems += [
        Problem(
            ("options", "column_mapping", role),
            f"no key looks like the {role}: name it here",
            [*found][:50],
            list(others[role]),
        )
        for role in lacking
    ]
    by = options.split.by
    if by and by not in found:
        problems.append(Problem(("options", "split", "by"), "no such column", by, [*found][:50]))
    if problems:
        raise Invalid(*problems)
    assert complete is not None
    kept = {role: names[role] for role in (*complete, *others)}
    return kept | ({by: by} if by else {})


def _is_text(value: Any, line: int, name: str, faults: Faults) -> bool:
    if isinstance(value, str) and value and not is_unstorable(value):
        return True
    faults.add(("line", line, name), "not a text", short(value), f"a text of {STORABLE}")
    return False


def _of_tokens(
    line: int, found: Mapping[str, Any], names: Mapping[str, str], faults: Faults
) -> Example | None:
    lists = []
    for role in ("tokens", "tags"):
        value = found.get(names[role])
        sound = isinstance(value, list) and all(
            isinstance(v, str) and not is_unstorable(v) for v in value
        )
        if not sound:
            allowed = f'["...", "..."], each of {STORABLE}'
            faults.add(("line", line, names[role]), _NO_TEXTS, short(value), allowed)
        elif len(value) > MAX_TOKENS:  # type: ignore[arg-type]
            allowed = f"at most {MAX_TOKENS}"
            faults.add(("line", line, names[role]), "too many tokens", len(value), allowed)  # type: ignore[arg-type]
        else:
            lists.append(value)
    if len(lists) < 2:
        return None
    tokens, tags = lists
    if len(tokens) != len(tags):  # type: ignore[arg-type]
        loc = ("line", line, names["tags"])
        faults.add(loc, "not as many tags as tokens", len(tags), len(tokens))  # type: ignore[arg-type]
        return None
    return Example(line, tokens, tags)  # type: ignore[arg-type]


def _of_spans(
    line: int, found: Mapping[str, Any], names: Mapping[str, str], faults: Faults
) -> Example | None:
    text, spans = found.get(names["text"]), found.get(names["spans"])
    if not isinstance(text, str) or is_unstorable(text):
        faults.add(
            ("line", line, names["text"]), "not a text", short(text), f"a text of {STORABLE}"
        )
        return None
    if not isinstance(spans, list):
        faults.add(("line", line, names["spans"]), "not a list", short(spans), "a list of spans")
        return None
    loc = ("line", line, names["spans"])
    sound = [
        span
        for place, given in enumerate(spans)
        if (span := _span(given, text, loc, place, faults))
    ]
    if len(sound) < len(spans):
        return None
    tokens = cut(text, syllables=True)
    placed = _on_tokens(sorted(sound, key=lambda span: span.start), text, tokens)
    for one, other in pairwise(placed):
        if one.end > other.start:
            faults.add(
                loc, "two spans have a token in common", [one.label, other.label], "one each"
            )
            return None
    return Example(line, tokens, span_tags(placed, len(tokens)), text=text)


def _span(
    given: Any, text: str, loc: tuple[str | int, ...], place: int, faults: Faults
) -> Span | None:
    """A span in characters; None, and a fault, if it is none."""
    label, start, end = (
        (given.get(key) for key in ("label", "start", "end"))
        if isinstance(given, dict)
        else (None, None, None)
    )
    if (
        not isinstance(label, str)
        or not label
        or len(label) > MAX_LABEL
        or is_unstorable(label)
        or type(start) is not int
        or type(end) is not int
        or not 0 <= start < end <= len(text)
        or not text[start:end].strip()
    ):
        allowed = f"a label, and 0 <= start < end <= {len(text)} around more than spaces"
        faults.add((*loc, place), "not a span of the text", short(given), allowed)
        return None
    return Span(label, start, end)


def _on_tokens(spans: Sequence[Span], text: str, tokens: Sequence[str]) -> list[Span]:
    """Spans in tokens: all those that they touch."""
    starts = starts_in(text, tokens)
    ends = [start + len(token) for start, token in zip(starts, tokens, strict=True)]
    placed, first = [], 0
    for label, start, end in spans:
        while ends[first] <= start:
            first += 1
        last = first
        while last < len(starts) and starts[last] < end:
            last += 1
        placed.append(Span(label, first, last))
    return placed
