"""Archives of styles to paint in, and of photos to learn to paint."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import polars as pl

from tasks.base import Upload
from tasks.parts.archives import Archive, Limits, is_clutter, open_archive
from tasks.parts.images import MAX_BYTES, reduced
from tasks.parts.pictures import look
from tasks.parts.problems import Invalid, Problem

STYLES, CONTENTS = ("style", "styles"), ("content", "contents")
MOST_STYLES = 64
SMALLEST = 16
"""Pixels that each side of an image has at least."""
LARGEST_STYLE = 512
"""Pixels that the longer side of a style that is kept has at most."""
_LIMITS = Limits(member=MAX_BYTES)
_ALLOWED = "`style/` with a picture for each style, and `content/` with photos to learn from"


class Members(NamedTuple):
    """The names of an archive's images by what they are for."""

    styles: list[str]
    contents: list[str]


def read_contents(upload: Upload) -> pl.DataFrame:
    """One row per photo: `image`, `name` and its facts. Raises Invalid, naming files, those of styles too."""
    with open_archive(upload.path, _LIMITS) as archive:
        members = _members(archive)
        if not members.contents:
            raise Invalid(Problem((), "no content", _folders(archive), _ALLOWED))
        frame = _frame(archive, members.contents)
        _, facts = (
            look(_frame(archive, names), SMALLEST) for names in (members.styles, members.contents)
        )
    return frame.with_columns(facts)


def read_styles(upload: Upload) -> dict[str, bytes]:
    """Styles by their name, the file's without its ending, in the order of names. Raises Invalid."""
    with open_archive(upload.path, _LIMITS) as archive:
        names = _members(archive).styles
        if not names:
            raise Invalid(Problem((), "no style", _folders(archive), _ALLOWED))
        if len(names) > MOST_STYLES:
            raise Invalid(Problem((), "too many styles", len(names), f"at most {MOST_STYLES}"))
        found: dict[str, str] = {}
        problems = []
        for name in names:
            first = found.setdefault(_style_of(name), name)
            if first != name:
                problems.append(Problem((name,), "two styles of one name", first, "one file each"))
        if problems:
            raise Invalid(*problems)
        return {
            style: reduced(archive.read(name), LARGEST_STYLE)
            for style, name in sorted(found.items())
        }


def _members(archive: Archive) -> Members:
    """The images of an archive; where no folder says what they are, all are photos. Raises Invalid."""
    names = [name for name in archive.names if not is_clutter(name)]
    if not names:
        raise Invalid(Problem((), "the archive is empty", "no files", _ALLOWED))
    roles = [_role(name) for name in names]
    if not any(roles):
        return Members([], names)
    problems = [
        Problem((name,), "neither a style nor a content", name, _ALLOWED)
        for name, role in zip(names, roles, strict=True)
        if role is None
    ]
    if problems:
        raise Invalid(*problems)
    return Members(
        [name for name, role in zip(names, roles, strict=True) if role is STYLES],
        [name for name, role in zip(names, roles, strict=True) if role is CONTENTS],
    )


def _role(name: str) -> tuple[str, ...] | None:
    for folder in PurePosixPath(name).parent.parts:
        for role in (STYLES, CONTENTS):
            if folder.lower() in role:
                return role
    return None


def _style_of(name: str) -> str:
    return PurePosixPath(name).stem


def _folders(archive: Archive) -> list[str]:
    return sorted({str(PurePosixPath(name).parent) for name in archive.names})[:8]


def _frame(archive: Archive, names: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"image": [archive.read(name) for name in names], "name": list(names)},
        schema={"image": pl.Binary, "name": pl.String},
    )


def paired(contents: pl.DataFrame, styles: dict[str, bytes]) -> pl.DataFrame:
    """Photos, each with the style that it is painted in: in turn, and as many rows as it takes for all of both."""
    rows, names = max(contents.height, len(styles)), list(styles)
    turn = [names[row % len(names)] for row in range(rows)]
    chosen = contents[[row % contents.height for row in range(rows)]]
    return chosen.select(
        "image",
        "name",
        pl.Series("style", turn, dtype=pl.String),
        pl.Series("style_image", [styles[name] for name in turn], dtype=pl.Binary),
    )
