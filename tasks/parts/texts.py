"""Texts of data sets and requests: which column they are in, how long they are, and whether they can be read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from models.parts.options import Plain
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, line_of
from tasks.parts.tables import SHOWN, pick_column
from tasks.parts.vocabulary import MAX_TEXT

LENGTHS = ("median", "p98", "most")


class TextInput(Plain):
    """One text."""

    text: str = Field(
        max_length=MAX_TEXT, description="Any text.", examples=["What a wonderful film!"]
    )


def choose_columns(
    frame: pl.DataFrame, mapping: Mapping[str, str], usual: Mapping[str, tuple[str, ...]]
) -> dict[str, pl.Series]:
    """The columns of a task's roles under the roles' names, from the file's own names; lists stay, all else is strings.

    `usual` has the names to look for when the mapping names none. Raises Invalid for each one missing.
    """
    names = {role: pick_column(frame, role, mapping, found) for role, found in usual.items()}
    columns = [name for name in frame.columns if name != LINE][:SHOWN]
    problems = [
        Problem(
            ("options", "column_mapping", role),
            f"no column looks like the {role}: name it here",
            columns,
            f"one of the columns; usual names are {', '.join(usual[role])}",
        )
        for role, name in names.items()
        if name is None
    ]
    if problems:
        raise Invalid(*problems)
    return {role: _text(frame[name]).alias(role) for role, name in names.items() if name}


def _text(values: pl.Series) -> pl.Series:
    return values if values.dtype == pl.List(pl.String) else values.cast(pl.String)


def check_present(frame: pl.DataFrame, *columns: str) -> None:
    """Raises Invalid, naming the lines, when examples have no text at all; an empty one is a text."""
    problems = [
        Problem(("line", line_of(frame, row), column), "there is no text", None, "a text")
        for column in columns
        for row in frame[column].is_null().arg_true()[: Invalid.LIMIT]
    ]
    if problems:
        raise Invalid(*problems)


def measure(texts: pl.Series) -> dict[str, Any]:
    """How many characters and words texts have: median, 98th percentile and most."""
    counts = {
        "characters": texts.str.len_chars(),
        "words": texts.str.count_matches(r"\w+|[^\w\s]"),
    }
    return {name: spread(count.to_numpy()) for name, count in counts.items()}


def spread(counts: Any) -> dict[str, int]:
    """Counts as their median, 98th percentile and most."""
    found = np.percentile(counts, [50, 98, 100])
    return {name: int(np.ceil(value)) for name, value in zip(LENGTHS, found, strict=True)}


def check_text(text: str, name: str) -> None:
    """Raises Invalid for what is no Unicode text: half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"half a surrogate pair at character {error.start + 1}"
        raise Invalid(Problem((name,), "not Unicode text", where, "whole characters")) from None
