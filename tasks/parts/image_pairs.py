"""Archives of images, or of pairs of them: what an image is, and what it should become."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from tasks.base import Upload
from tasks.parts.archives import SPLIT_FOLDERS, Archive, Limits, is_clutter, open_archive
from tasks.parts.images import MAX_BYTES
from tasks.parts.pictures import look
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import SPLIT

INPUTS = ("input", "inputs", "source", "lr")
TARGETS = ("target", "targets", "hr")
MOST_FACTOR = 8
SMALLEST = 8
"""Pixels that each side of an image has at least."""
LIMITS = Limits(member=MAX_BYTES)
_PAIR = f"a folder of inputs ({', '.join(INPUTS)}) and one of targets ({', '.join(TARGETS)})"


class Placed(NamedTuple):
    """A member, or two that belong together, by the folders they lie in."""

    name: str
    """Of the original: the image itself, or the target."""
    source: str | None
    """The input of a pair."""
    split: str | None


def read_images(upload: Upload) -> pl.DataFrame:
    """One row per image: `image`, `name`, its facts, `target` in pairs, and `split` where folders tell it.

    In pairs `image` is the input, and facts are of the target. Raises Invalid, naming files.
    """
    with open_archive(upload.path, LIMITS) as archive:
        placed = places(archive)
        paired = placed[0].source is not None
        frame = pl.DataFrame(
            {
                "image": [archive.read(place.name) for place in placed],
                "name": [place.name for place in placed],
                SPLIT: [place.split for place in placed],
            },
            schema={"image": pl.Binary, "name": pl.String, SPLIT: pl.String},
        )
        if paired:
            sources = [archive.read(place.source or "") for place in placed]
    found = frame.with_columns(look(frame, SMALLEST))
    if paired:
        found = found.rename({"image": "target"}).with_columns(pl.Series("image", sources))
        found = found.with_columns(_compared(found, [place.source or "" for place in placed]))
    return found


def places(archive: Archive) -> list[Placed]:
    """The images of an archive by their folders, in pairs if it has folders for them.

    Raises Invalid for an archive without any, and for halves of pairs.
    """
    names = [name for name in archive.names if not is_clutter(name)]
    if not names:
        raise Invalid(Problem((), "the archive is empty", "no files", "images"))
    paths = [name.split("/") for name in names]
    roles = [_role(path) for path in paths]
    paired = {INPUTS, TARGETS} <= set(roles)
    if paired:
        paths = [_without_role(path) for path in paths]
    splits = _splits(paths)
    if not paired:
        return [Placed(name, None, split) for name, split in zip(names, splits, strict=True)]
    keys = ["/".join(path).rpartition(".")[0] or "/".join(path) for path in paths]
    return _joined(names, keys, roles, splits)


def _role(path: Sequence[str]) -> tuple[str, ...] | None:
    for part in path[:-1]:
        for role in (INPUTS, TARGETS):
            if part.lower() in role:
                return role
    return None


def _without_role(path: list[str]) -> list[str]:
    for place, part in enumerate(path[:-1]):
        if part.lower() in INPUTS + TARGETS:
            return path[:place] + path[place + 1 :]
    return path


def _splits(paths: list[list[str]]) -> list[str | None]:
    """The split of each path, where the first folder that not all of them share is one's."""
    while min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    if all(len(path) > 1 and path[0].lower() in SPLIT_FOLDERS for path in paths):
        return [SPLIT_FOLDERS[path[0].lower()] for path in paths]
    return [None] * len(paths)


def _joined(
    names: list[str],
    keys: list[str],
    roles: list[tuple[str, ...] | None],
    splits: list[str | None],
) -> list[Placed]:
    """Inputs and targets of the same name. Raises Invalid for those that are alone."""
    sides: dict[tuple[str, ...], dict[str, str]] = {INPUTS: {}, TARGETS: {}}
    problems = []
    for name, key, role in zip(names, keys, roles, strict=True):
        if role is None:
            problems.append(Problem((name,), "neither an input nor a target", name, _PAIR))
        elif key in sides[role]:
            first = sides[role][key]
            problems.append(Problem((name,), "two files for one half of a pair", first, "one"))
        else:
            sides[role][key] = name
    inputs, targets = sides[INPUTS], sides[TARGETS]
    for ours, theirs, lacking in ((inputs, targets, "target"), (targets, inputs, "input")):
        problems += [
            Problem((name,), f"has no {lacking}", None, f"a {lacking} of the same name")
            for key, name in ours.items()
            if key not in theirs
        ]
    if problems:
        raise Invalid(*problems)
    split_of = dict(zip(keys, splits, strict=True))
    return [Placed(name, inputs[key], split_of[key]) for key, name in targets.items()]


def _compared(frame: pl.DataFrame, sources: list[str]) -> list[pl.Series]:
    """How many times as large targets are as inputs, and whether either has colours.

    Raises Invalid for pairs whose sizes do not go together.
    """
    facts = look(frame.select("image", pl.Series("name", sources)))
    factors, problems = [], []
    columns = (facts["width"], facts["height"], frame["width"], frame["height"])
    for source, *sizes in zip(sources, *columns, strict=True):
        width, height, wanted_width, wanted_height = sizes
        factor = max(1, min(MOST_FACTOR, round(wanted_width / width)))
        factors.append(factor)
        expected = (factors[0] * width, factors[0] * height)
        if (wanted_width, wanted_height) != expected:
            found = f"{width} x {height}, and its target {wanted_width} x {wanted_height}"
            allowed = (
                f"a target of the same size, or 2 to {MOST_FACTOR} times as large in all pairs"
            )
            problems.append(Problem((source,), "sizes that do not go together", found, allowed))
    if problems:
        raise Invalid(*problems)
    colour = frame["colour"] | facts["colour"]
    return [pl.Series("factor", factors, dtype=pl.Int64), colour.alias("colour")]
