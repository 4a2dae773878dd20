"""Which examples are trained on, which are held out, and whether any are in both."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.parts.options import Plain
from tasks.parts.problems import Invalid, Problem

SPLITS = ("train", "validation", "test")
Places = NDArray[np.int64]
SPLIT = "split"
"""A column a reader adds where a file says itself what each of its examples is for; see `Task.tells_splits`."""
LINE = "\0line"
"""A column a reader may add: where each example stood in its file. `Task.describe` drops it."""


def line_of(frame: pl.DataFrame, row: int) -> int:
    """Where the example at `row` (0-based) stood in its file, counted from 1."""
    return int(frame[LINE][row]) if LINE in frame.columns else row + 1


class SplitOptions(Plain):
    """How examples are held out when the upload does not say so itself."""

    fraction: float = Field(0.2, gt=0, lt=1, description="Share of the examples for validation.")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the examples for the test.")
    stratify: bool = Field(True, description="Keep the share of every class in every split.")
    by: str | None = Field(
        None, description="A column that says train, validation or test for each row."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Which examples are drawn.")


def split(
    frames: Mapping[str, pl.DataFrame], options: SplitOptions, stratum: str | None
) -> dict[str, pl.DataFrame]:
    """Train, validation and perhaps test split from `file`, or from `train` [+ `validation`] [+ `test`].

    Whatever split was not given as a file is drawn from the train file. Raises Invalid when a split
    would be empty.
    """
    if "file" in frames and options.by:
        splits = _by_column(frames["file"], options.by)
    elif "file" in frames:
        splits = _drawn(frames["file"], options, stratum, test=True)
    else:
        splits = dict(frames)
    if "validation" not in splits:
        splits |= _drawn(splits["train"], options, stratum, test=False)
    for name, frame in splits.items():
        if frame.height == 0:
            raise Invalid(
                Problem((name,), "this split has no examples", 0, "at least 1; upload more")
            )
    return {name: splits[name] for name in SPLITS if name in splits}


def shown(frame: pl.DataFrame) -> list[str]:
    """The columns that are the user's own."""
    return [name for name in frame.columns if name != LINE]


def _by_column(whole: pl.DataFrame, column: str) -> dict[str, pl.DataFrame]:
    if column not in whole.columns:
        raise Invalid(Problem(("options", "split", "by"), "no such column", column, shown(whole)))
    names = whole[column].cast(pl.String).str.strip_chars().str.to_lowercase()
    names = names.replace({"valid": "validation", "val": "validation", "dev": "validation"})
    wrong = (~names.is_in(SPLITS)).fill_null(True).arg_true()
    if len(wrong):
        row = wrong[0]
        raise Invalid(
            Problem(
                ("file", "line", line_of(whole, row), column),
                "not the name of a split",
                names[row],
                SPLITS,
            )
        )
    if not (names == "train").any():
        raise Invalid(Problem(("file", column), "no row says train", None, SPLITS))
    rest = whole.drop(column)
    return {name: part for name in SPLITS if (part := rest.filter(names == name)).height}


def _drawn(
    whole: pl.DataFrame, options: SplitOptions, stratum: str | None, *, test: bool
) -> dict[str, pl.DataFrame]:
    random = np.random.default_rng(options.seed)
    wanted = {"validation": options.fraction}
    if test and options.test_fraction:
        wanted["test"] = options.test_fraction
    if sum(wanted.values()) >= 1:
        raise Invalid(
            Problem(
                ("options", "split", "test_fraction"),
                "nothing would be left to train on",
                sum(wanted.values()),
                "fraction + test_fraction below 1",
            )
        )
    classed = stratum if options.stratify and stratum in whole.columns else None
    place = _places(_groups(whole, classed), list(wanted.values()), random)
    return {name: whole.filter(place == n) for n, name in enumerate(["train", *wanted])}


def _groups(whole: pl.DataFrame, stratum: str | None) -> list[Places]:
    """The rows of each class; all rows if there are no classes to keep apart."""
    rows = np.arange(whole.height)
    if stratum is None:
        return [rows]
    table = pl.DataFrame({"class": whole[stratum], "row": rows})
    parts = table.partition_by("class", maintain_order=True)
    return [part["row"].to_numpy() for part in parts]


def _places(groups: list[Places], shares: list[float], random: np.random.Generator) -> Places:
    """For each row 0 for train, or which of the shares it is held out for, counted from 1."""
    place = np.zeros(sum(map(len, groups)), dtype=np.int64)
    owed = np.zeros(len(shares))
    for group in groups:
        rows = random.permutation(group)
        for number, share in enumerate(shares):
            wanted = share * len(group) + owed[number]
            # At least one example of every class stays in the train split.
            count = max(0, min(round(wanted), len(rows) - 1))
            held, rows = rows[:count], rows[count:]
            place[held] = number + 1
            # What rounding took from one class is given to the next, so that the sum is right.
            owed[number] = min(wanted - count, 0.5)
    for number in range(1, len(shares) + 1):
        spare = [rows for group in groups if len(rows := group[place[group] == 0]) > 1]
        if not (place == number).any() and (spare or (place == 0).sum() > 1):
            place[random.choice(np.concatenate(spare or [np.flatnonzero(place == 0)]))] = number
    return place


def overlap(splits: Mapping[str, pl.DataFrame], columns: list[str]) -> dict[str, Any]:
    """Duplicates within the train split and examples that are in two splits, counted by `columns`."""
    hashes = {
        name: set(frame.select(columns).hash_rows(seed=0).to_list())
        for name, frame in splits.items()
    }
    return {
        "duplicates": splits["train"].height - len(hashes["train"]),
        "overlap": {
            f"{a}/{b}": len(hashes[a] & hashes[b])
            for i, a in enumerate(hashes)
            for b in list(hashes)[i + 1 :]
        },
    }
