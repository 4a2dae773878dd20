"""Documents with clusters of mentions: CoNLL-2012 and JSONL files to frames, with every fault named by its line."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tasks.base import Upload
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.splits import LINE
from tasks.parts.tables import STORABLE, Faults, is_unstorable, objects, text_lines

DOCUMENT_FORMATS: dict[str, str] = {
    "conll": "CoNLL-2012, minimal or full: `#begin document (name); part 000`, a line per token with document, part, "
    "number, word, and in the last column the brackets of the clusters, such as `(12|(13)|12)`; blank lines "
    "between sentences; `#end document`.",
    "jsonl": 'One JSON object per document: {"sentences": [["Ann", "left"], ["She", "ran"]], "clusters": '
    "[[[0, 0, 1], [1, 0, 1]]]}, a mention being the number of its sentence, its first token and the token behind "
    'its last, from 0; or {"tokens": ["Ann", "left"], "clusters": [[[0, 1]]]}, without sentences.',
}
MAX_WORDS = 10_000
"""Tokens of one document."""
ROLES = ("sentences", "tokens", "clusters", "document")
Mention = tuple[int, int, int]
"""Sentence, first token, and the token behind the last; from 0."""
_SCHEMA = {
    "document": pl.String,
    "sentences": pl.List(pl.List(pl.String)),
    "clusters": pl.List(pl.List(pl.List(pl.Int64))),
}
_NAMES = ("document", "doc_key", "doc_id", "id")
_NO_BRACKETS = {"_", "-", "*", ""}


def read_documents(
    upload: Upload, asked: str | None, mapping: Mapping[str, str], kept: Sequence[str] = ()
) -> pl.DataFrame:
    """The documents of a file: name, sentences, clusters in the order of their first mentions, and `LINE`.

    `kept` are other names of a JSONL file to keep, as text. Raises Invalid, naming each faulty line.
    """
    if asked is not None and asked not in DOCUMENT_FORMATS:
        raise Invalid(Problem(("format",), "no such format", asked, sorted(DOCUMENT_FORMATS)))
    if upload.path.stat().st_size == 0:
        raise Invalid(Problem((), "the file is empty", upload.name, sorted(DOCUMENT_FORMATS)))
    faults = Faults()
    if (asked or _format(upload.path)) == "jsonl":
        rows = list(_read_jsonl(upload.path, mapping, kept, faults))
    else:
        rows, kept = list(_read_conll(upload.path, faults)), ()
    faults.check()
    if not rows:
        raise Invalid(Problem((), "the file has no documents", upload.name, DOCUMENT_FORMATS))
    schema: dict[str, Any] = {**_SCHEMA, **dict.fromkeys(kept, pl.String), LINE: pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _format(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return "jsonl" if head.startswith(b"{") else "conll"


def in_order(clusters: Iterable[Iterable[Sequence[int]]]) -> list[list[list[int]]]:
    """Mentions in the order of the document, clusters in that of their first ones."""
    return sorted(sorted(list(mention) for mention in cluster) for cluster in clusters if cluster)


# CoNLL-2012


@dataclass
class _Document:
    name: str
    line: int
    sentences: list[list[str]] = field(default_factory=lambda: [[]])
    clusters: dict[str, list[Mention]] = field(default_factory=dict)
    owners: dict[Mention, str] = field(default_factory=dict)
    opened: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """First token and line of each mention that has no end yet, by cluster."""

    def row(self) -> tuple[Any, ...]:
        sentences = [sentence for sentence in self.sentences if sentence]
        return self.name, sentences, in_order(self.clusters.values()), self.line


def _read_conll(path: Path, faults: Faults) -> Iterator[tuple[Any, ...]]:
    document: _Document | None = None
    for number, raw in enumerate(text_lines(path), start=1):
        line = raw.rstrip("\r\n")
        if line.startswith("#begin document"):
            if document is not None:
                faults.add(("line", document.line), "the document has no end", document.name, _END)
            document = _Document(line.removeprefix("#begin document").strip(), number)
        elif line.startswith("#end document"):
            if document is None:
                faults.add(("line", number), "no document has begun", line[:80], _BEGIN)
            elif _is_whole(document, faults):
                yield document.row()
            document = None
        elif line.startswith("#"):
            continue
        elif not line.strip():
            if document is not None:
                _end_sentence(document, faults)
        elif document is None:
            faults.add(("line", number), "no document has begun", line[:80], _BEGIN)
        else:
            _read_token(document, line, number, faults)
    if document is not None:
        faults.add(("line", document.line), "the document has no end", document.name, _END)


_BEGIN, _END = "#begin document (name); part 000", "#end document"


def _is_whole(document: _Document, faults: Faults) -> bool:
    _end_sentence(document, faults)
    words = sum(map(len, document.sentences))
    if not 1 <= words <= MAX_WORDS:
        allowed = f"1 to {MAX_WORDS} tokens; cut longer documents into parts"
        faults.add(("line", document.line), "no such length of a document", words, allowed)
    return not faults.found


def _end_sentence(document: _Document, faults: Faults) -> None:
    for cluster, opened in document.opened.items():
        for _, line in opened:
            faults.add(
                ("line", line), "a mention has no end in its sentence", f"({cluster}", f"{cluster})"
            )
    document.opened.clear()
    if document.sentences[-1]:
        document.sentences.append([])


def _read_token(document: _Document, line: str, number: int, faults: Faults) -> None:
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) < 5 or not cells[3].strip():
        allowed = "document, part, number, word, ..., clusters"
        faults.add(("line", number), "not a token with its columns", line[:80], allowed)
        return
    sentence = document.sentences[-1]
    sentence.append(cells[3])
    for mark in () if cells[-1].strip() in _NO_BRACKETS else cells[-1].strip().split("|"):
        cluster = mark.removeprefix("(").removesuffix(")")
        if cluster == mark or not cluster or set("()") & set(cluster):
            faults.add(("line", number), "not a bracket", mark[:80], "such as (12, 12) or (12)")
            continue
        if mark.startswith("("):
            document.opened.setdefault(cluster, []).append((len(sentence) - 1, number))
        if not mark.endswith(")"):
            continue
        opened = document.opened.get(cluster)
        if not opened:
            faults.add(("line", number), "a mention ends that has not begun", mark, f"({cluster}")
            continue
        first, _ = opened.pop()
        mention = (len(document.sentences) - 1, first, len(sentence))
        if mention in document.owners:
            found = f"{document.owners[mention]} and {cluster}"
            faults.add(("line", number), "the same mention twice", found, "one cluster of each")
            continue
        document.owners[mention] = cluster
        document.clusters.setdefault(cluster, []).append(mention)


# JSONL


def _read_jsonl(
    path: Path, mapping: Mapping[str, str], kept: Sequence[str], faults: Faults
) -> Iterator[tuple[Any, ...]]:
    for number, found in objects(path, faults, DOCUMENT_FORMATS["jsonl"]):
        row = _row(found, mapping, number, faults)
        if row is not None:
            others = [None if found.get(name) is None else str(found[name]) for name in kept]
            yield (*row, *others, number)


def _row(
    found: dict[str, Any], mapping: Mapping[str, str], number: int, faults: Faults
) -> tuple[Any, ...] | None:
    named = {role: mapping.get(role, role) for role in ROLES}
    flat = named["sentences"] not in found
    text = named["tokens"] if flat else named["sentences"]
    at = ("line", number)
    if text not in found:
        faults.add(at, "there are neither sentences nor tokens", sorted(found)[:20], ROLES[:2])
        return None
    sentences = [found[text]] if flat else found[text]
    clusters: Any = found.get(named["clusters"])
    problems = check_sentences(sentences, text) or _check_clusters(
        clusters, sentences, named["clusters"], flat=flat
    )
    for problem in problems:
        faults.add((*at, *problem.loc), problem.msg, problem.found, problem.allowed)
    if problems:
        return None
    names = [named["document"]] if "document" in mapping else _NAMES
    name = next((str(found[name]) for name in names if found.get(name) is not None), None)
    if flat:
        clusters = [[[0, *mention] for mention in cluster] for cluster in clusters]
    return name, sentences, in_order(clusters)


def check_sentences(value: Any, name: str) -> list[Problem]:
    """What is wrong with the sentences of a document, if they should be lists of tokens."""
    if not (isinstance(value, list) and all(isinstance(sentence, list) for sentence in value)):
        return [Problem((name,), "not lists of tokens", short(value), [["Ann", "left"]])]
    words = sum(map(len, value))
    if not 1 <= words <= MAX_WORDS:
        allowed = f"1 to {MAX_WORDS} tokens; cut longer documents into parts"
        return [Problem((name,), "no such length of a document", words, allowed)]
    allowed = f"text that is not empty, of {STORABLE}"
    return [
        Problem((name, place, at), "not a token", short(token), allowed)
        for place, sentence in enumerate(value)
        for at, token in enumerate(sentence)
        if not _is_token(token)
    ][: Invalid.LIMIT]


def _is_token(token: Any) -> bool:
    return isinstance(token, str) and bool(token.strip()) and not is_unstorable(token)


def _check_clusters(
    clusters: Any, sentences: list[list[str]], name: str, *, flat: bool
) -> list[Problem]:
    if not (isinstance(clusters, list) and all(isinstance(cluster, list) for cluster in clusters)):
        return [Problem((name,), "not lists of mentions", short(clusters), [[[0, 0, 1]]])]
    spans = [m for cluster in clusters for m in cluster]
    if flat:
        spans = [[0, *m] if isinstance(m, list) else m for m in spans]
    return check_mentions(spans, sentences, name)


def check_mentions(
    mentions: Iterable[Any], sentences: Sequence[Sequence[str]], name: str
) -> list[Problem]:
    """What is wrong with mentions that should be sentence, first token, and the token behind the last."""
    problems, seen = [], set[Mention]()
    for place, mention in enumerate(mentions):
        problem = _check_mention(mention, sentences)
        if problem is None and tuple(mention) in seen:
            problem = Problem((), "the same mention twice", mention, "one cluster of each")
        if problem is None:
            seen.add(tuple(mention))
        else:
            problems.append(problem._replace(loc=(name, "mention", place + 1)))
    return problems[: Invalid.LIMIT]


def _check_mention(mention: Any, sentences: Sequence[Sequence[str]]) -> Problem | None:
    if not isinstance(mention, list | tuple) or [type(n) for n in mention] != [int, int, int]:
        allowed = "numbers: sentence, first token, token behind the last"
        return Problem((), "not a mention", short(mention), allowed)
    sentence, first, behind = mention
    if not 0 <= sentence < len(sentences):
        return Problem((), "no such sentence", sentence, f"0 to {len(sentences) - 1}")
    if not 0 <= first < behind <= len(sentences[sentence]):
        allowed = f"first < behind, both within 0 to {len(sentences[sentence])}"
        return Problem((), "outside its sentence", [first, behind], allowed)
    return None
