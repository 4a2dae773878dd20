"""Archives of files with a table beside them that says what each file is."""

import posixpath
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tasks.base import DatasetOptions, Upload
from tasks.parts.archives import SPLIT_FOLDERS, Archive, is_clutter
from tasks.parts.label_sets import as_sets, read_labels
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, SPLIT
from tasks.parts.tables import TABLE_FORMATS, check_mapping, read_table
from tasks.parts.texts import choose_columns

USUAL = {
    "file": ("image", "file_name", "filename", "file", "path", "image_path", "name"),
    "label": ("label", "labels", "class", "category", "categories", "target", "tags"),
}
"""What columns are usually called. Files are named from the table's folder, from the archive's root, or alone."""


def manifests(archive: Archive) -> list[str]:
    """The tables of an archive."""
    endings = tuple(f".{format}" for format in TABLE_FORMATS)
    return [n for n in archive.names if n.lower().endswith(endings) and not is_clutter(n)]


def read_manifests(archive: Archive, tables: list[str], options: DatasetOptions) -> pl.DataFrame:
    """One row per listed file: `name`, `label`, the line it is listed on, and `split` where tables tell it.

    Files that no table lists are passed over. Raises Invalid, naming table and line.
    """
    check_mapping(options.column_mapping, list(USUAL))
    names = _Names(archive)
    frames = [_read(archive, table, names, options) for table in tables]
    if len({str(frame["label"].dtype) for frame in frames}) > 1:
        frames = [frame.with_columns(as_sets(frame["label"])) for frame in frames]
    told = [split_of(table) for table in tables]
    if None in told and any(told):
        which = tables[told.index(None)]
        allowed = sorted(SPLIT_FOLDERS)
        raise Invalid(Problem((which,), "does not tell its split, as others do", which, allowed))
    whole = pl.concat(
        frame.with_columns(pl.lit(split, pl.String).alias(SPLIT)) if split else frame
        for frame, split in zip(frames, told, strict=True)
    )
    twice = [name for name, times in Counter(whole["name"]).items() if times > 1]
    if twice:
        message, allowed_times = "is listed more than once", "one row for each file"
        raise Invalid(*(Problem((name,), message, None, allowed_times) for name in twice))
    return whole


def split_of(table: str) -> str | None:
    """The split that a table's own name or its folder's tells: `train.csv`, `valid/labels.csv`."""
    path = Path(table.lower())
    return SPLIT_FOLDERS.get(path.stem) or SPLIT_FOLDERS.get(path.parent.name)


def _read(archive: Archive, table: str, names: "_Names", options: DatasetOptions) -> pl.DataFrame:
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "table"
            path.write_bytes(archive.read(table))
            format = table.lower().rpartition(".")[2]
            frame = read_table(Upload(path, table), format, lists=True)
        columns = choose_columns(frame, options.column_mapping, USUAL)
        return frame.select(
            pl.Series("name", names.found(table, columns["file"], frame[LINE])),
            read_labels(columns["label"], options).alias("label"),
            pl.Series(LINE, frame[LINE]),
            *([frame[by]] if (by := options.split.by) in frame.columns and by is not None else []),
        )
    except Invalid as error:
        raise Invalid(
            *(p if p.loc[:1] == ("options",) else _in(p, table) for p in error.problems)
        ) from None


def _in(problem: Problem, table: str) -> Problem:
    return problem._replace(loc=(table, *problem.loc))


class _Names:
    """The files of an archive, found by what a table calls them."""

    def __init__(self, archive: Archive) -> None:
        self._paths = {name for name in archive.names if not is_clutter(name)}
        alone: dict[str, list[str]] = {}
        for path in self._paths:
            alone.setdefault(posixpath.basename(path), []).append(path)
        self._alone: Mapping[str, list[str]] = alone

    def found(self, table: str, files: pl.Series, lines: pl.Series) -> list[str]:
        """The paths of the files that a table names. Raises Invalid, at the lines of those that are not there."""
        found, problems = [], []
        for file, line in zip(files.to_list(), lines, strict=True):
            path = self._find(posixpath.dirname(table), file)
            if path is None:
                where = ("line", line, "file")
                message, allowed = "no such file in the archive", "a path from this table's folder"
                problems.append(Problem(where, message, file, allowed))
            else:
                found.append(path)
        if problems:
            raise Invalid(*problems)
        return found

    def _find(self, folder: str, file: object) -> str | None:
        if not isinstance(file, str) or not file:
            return None
        for path in (posixpath.normpath(posixpath.join(folder, file)), file):
            if path in self._paths:
                return path
        alone = self._alone.get(file, [])
        return alone[0] if len(alone) == 1 else None
