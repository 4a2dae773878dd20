"""Collections: documents, and queries with the documents that answer them, as the examples of splits."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from tasks.base import DatasetOptions
from tasks.parts.corpora import DOCUMENT, QUERY, Corpus, check_size
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import split

BEGINNING = 80
"""Characters of a document without a title that it is searched for by."""
KNOWN = 200
"""Documents at most that a corpus without judgements is validated by: each is to be found by its title."""


class Document(NamedTuple):
    """A document as it is kept in a model."""

    id: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def query(self) -> str:
        """What somebody who looks for this very document may ask."""
        return self.title or self.text[:BEGINNING]


# Examples are documents, and queries with what answers them; what asks for a document alone is its title.


def is_document(examples: pl.DataFrame) -> pl.Series:
    """Which examples are documents."""
    if "text" not in examples.columns:
        return pl.repeat(False, examples.height, eager=True)
    return examples["text"].is_not_null()


def documents_of(examples: pl.DataFrame) -> Iterable[Document]:
    """The documents among examples."""
    if "text" not in examples.columns:
        return []
    return map(Document._make, examples.filter(is_document(examples)).select(*DOCUMENT).iter_rows())


def queries_of(examples: pl.DataFrame) -> list[str]:
    """What is asked in each example."""
    if "text" not in examples.columns:
        return examples["query"].to_list()
    rows = examples.select("query", *DOCUMENT).iter_rows()
    return [Document(*found).query if query is None else query for query, *found in rows]


def gains_of(examples: pl.DataFrame) -> list[dict[str, float]]:
    """What answers each example, by id."""
    known = {"id": examples["id"]} if "id" in examples.columns else {}
    ids = known.get("id", pl.Series([None] * examples.height))
    return [
        {id: 1.0} if answers is None else {found["id"]: found["gain"] for found in answers}
        for id, answers in zip(ids, examples["relevant"].to_list(), strict=True)
    ]


# Splits of an upload


def together(found: Mapping[str, Corpus]) -> pl.DataFrame:
    """The documents of all files, each once. Raises Invalid where one id stands for two, and for their size."""
    whole = pl.concat(
        corpus.documents.with_columns(pl.lit(name).alias("file")) for name, corpus in found.items()
    ).unique(["id", "title", "text"], keep="first", maintain_order=True)
    first, *_ = found
    twice = whole.filter(~pl.col("id").is_first_distinct())
    if twice.height:
        raise Invalid(
            *(
                Problem(
                    (file,), "another document has this id in another file", id, "ids of their own"
                )
                for id, file in twice.select("id", "file").head(Invalid.LIMIT).iter_rows()
            )
        )
    documents = whole.drop("file")
    try:
        check_size(documents)
    except Invalid as error:
        raise Invalid(*(p._replace(loc=(first, *p.loc)) for p in error.problems)) from None
    return documents


def split_queries(
    found: Mapping[str, Corpus], documents: pl.DataFrame, options: DatasetOptions
) -> dict[str, pl.DataFrame]:
    """The queries of each split. Where none are for training, documents are what is validated by.

    Raises Invalid for a split that a file should have and has not.
    """
    frames: dict[str, pl.DataFrame] = {}
    for name, corpus in found.items():
        for part, queries in corpus.queries.items():
            # A file that was sent as a split holds it, whatever it is called inside.
            split_name = part if name == "file" or (name == "train" and part != "file") else name
            known = frames.get(split_name)
            frames[split_name] = queries if known is None else pl.concat([known, queries])
        if name != "train" and name != "file" and not corpus.queries:
            raise Invalid(Problem((name,), "no queries to measure by", 0, "queries and judgements"))
    frames = {name: frame for name, frame in frames.items() if frame.height}
    judged = frames.get("train", frames.get("file"))
    if judged is None or (judged.height < 2 and "validation" not in frames):
        known_items = _known_items(documents, options.split.seed)
        kept = {name: frame for name, frame in frames.items() if name != "file"}
        train = pl.DataFrame(schema=QUERY) if judged is None else judged
        splits = {"train": train, "validation": known_items, **kept}
    else:
        if "train" in frames:
            frames.pop("file", None)
        splits = split(frames, options.split, None)
    return {
        name: splits[name].select(*QUERY)
        for name in ("train", "validation", "test")
        if name in splits
    }


def _known_items(documents: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Some documents, each as the answer to its title."""
    count = min(KNOWN, max(1, documents.height // 5))
    drawn = np.random.default_rng(seed).permutation(documents.height)[:count]
    rows = [
        (document.query, [{"id": document.id, "gain": 1.0}])
        for document in documents_of(documents[np.sort(drawn).tolist()])
    ]
    return pl.DataFrame(rows, schema=QUERY, orient="row")
