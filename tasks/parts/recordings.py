"""Archives of recordings and what is said in them: manifests, transcripts, or a text beside each sound."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unicodedata import category, normalize

import polars as pl

from tasks.base import DatasetOptions, Upload
from tasks.parts.archives import SPLIT_FOLDERS, Archive, Limits, is_clutter, open_archive
from tasks.parts.media import each
from tasks.parts.problems import Invalid, Problem, short
from tasks.parts.sounds import MAX_BYTES, SUFFIXES, inspect
from tasks.parts.splits import LINE, SPLIT, shown
from tasks.parts.tables import Faults, check_mapping, pick_column, read_table

FORMATS = {
    "manifest": "A zip of sounds (WAV, FLAC, OGG, MP3, AIFF, M4A, WebM) and a manifest of them, JSON Lines, CSV, TSV "
    "or Parquet, with columns `audio` (the path of a sound), `text` and perhaps `speaker`; or `train`, `valid` and "
    "`test` manifests, also as Common Voice has them.",
    "transcripts": "A zip of sounds and LibriSpeech's `*.trans.txt`: the name of a sound and its text in each line.",
    "texts": "A zip of sounds, and beside `a.wav` its text as `a.txt`; perhaps within `train/`, `validation/` and "
    "`test/`.",
}
UNUSED = "\0unused"
"""A column that says, the same in each row, which sounds of the archive nothing was said of."""
MAX_TEXT = 10_000
_USUAL = {
    "audio": (
        *("audio", "path", "file_name", "filename", "file", "audio_filepath", "audio_path"),
        *("audio_file", "wav", "clip", "sound"),
    ),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "target"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
_TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
_TRANSCRIPT = ".trans.txt"
_BESIDE = ("", "audio", "clips", "wavs", "wav", "sounds")
"""Folders beside a manifest in which its sounds may lie."""
_SPLITS = {**SPLIT_FOLDERS, "dev": "validation"}
_LIMITS = Limits(member=max(MAX_BYTES, 256 << 20))
_LISTED = 20
_ABOUT = {"readme", "license", "licence", "notice", "speakers", "chapters", "books"}
"""Names of texts that are about an archive."""


class Line(NamedTuple):
    """What is said in one sound, and where that stands."""

    place: tuple[str | int, ...]
    sound: str
    """Its path as it was given."""
    text: Any
    speaker: str | None = None
    split: str | None = None


def read_recordings(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    """One row per sound: `audio`, `text`, `speaker`, `name`, its facts, and `split` where the layout tells it.

    Raises Invalid, naming the lines and the files that are wrong.
    """
    check_mapping(options.column_mapping, list(_USUAL))
    by = options.split.by or SPLIT
    with open_archive(upload.path, _LIMITS) as archive:
        names = [name for name in archive.names if not is_clutter(name)]
        lines = list(_lines(archive, names, options))
        found = _found(lines, _Shelf(names))
        frame = pl.DataFrame(
            {
                "audio": [archive.read(name) for _, name, _ in found],
                "text": [text for _, _, text in found],
                "speaker": [line.speaker for line, _, _ in found],
                "name": [name for _, name, _ in found],
                by: [line.split for line, _, _ in found],
            },
            schema={
                "audio": pl.Binary,
                **dict.fromkeys(("text", "speaker", "name", by), pl.String),
            },
        )
    frame = frame.with_columns(*_look(frame), pl.lit(_unused(names, frame["name"])).alias(UNUSED))
    return frame if frame[by].null_count() == 0 else frame.drop(by)


def _layout(names: Sequence[str]) -> tuple[str, list[str]]:
    """The format of an archive, and its members that say what is said.

    Of manifests those of splits count, if there are any: Common Voice has others that overlap with them.
    """
    tables = [name for name in names if name.lower().endswith(_TABLES)]
    if tables:
        return "manifest", [name for name in tables if _split_of(name, "manifest")] or tables
    transcripts = [name for name in names if name.lower().endswith(_TRANSCRIPT)]
    if transcripts:
        return "transcripts", transcripts
    return "texts", [name for name in names if _is_text(name)]


def _split_of(name: str, kind: str) -> str | None:
    """The split that a member's folders or its own name tell."""
    *folders, last = name.lower().split("/")
    parts = [last.partition(".")[0], *reversed(folders)] if kind == "manifest" else folders
    # LibriSpeech's folders are dev-clean, test-other, train-clean-100.
    starts = (part.partition("-")[0] if kind == "transcripts" else part for part in parts)
    return next((_SPLITS[start] for start in starts if start in _SPLITS), None)


def _is_sound(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_text(name: str) -> bool:
    stem, _, suffix = name.rpartition("/")[2].lower().rpartition(".")
    return suffix == "txt" and stem not in _ABOUT


# What is said


def _lines(archive: Archive, names: Sequence[str], options: DatasetOptions) -> Iterator[Line]:
    kind, members = _layout(names)
    if options.format not in (None, kind):
        loc = ("options", "format")
        if options.format not in FORMATS:
            raise Invalid(Problem(loc, "no such format", options.format, list(FORMATS)))
        raise Invalid(Problem(loc, "not what the archive looks like", options.format, kind))
    if not any(map(_is_sound, names)):
        raise Invalid(Problem((), "no sounds in the archive", names[:_LISTED], list(SUFFIXES)))
    if not members:
        raise Invalid(Problem((), "nothing says what is said", names[:_LISTED], FORMATS))
    read = {"manifest": _of_table, "transcripts": _of_transcript, "texts": _of_text}[kind]
    problems = []
    for name in members:
        try:
            yield from read(archive, name, options)
        except Invalid as error:
            problems += [p._replace(loc=_within(name, p.loc)) for p in error.problems]
    if problems:
        raise Invalid(*problems)


def _within(name: str, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return loc if loc[:1] in (("options",), (name,)) else (name, *loc)


def _of_table(archive: Archive, name: str, options: DatasetOptions) -> Iterator[Line]:
    with TemporaryDirectory() as folder:
        table = read_table(Upload(_saved(archive, name, folder), PurePosixPath(name).name))
    picked = {
        role: pick_column(table, role, options.column_mapping, _USUAL[role]) for role in _USUAL
    }
    missing = [
        Problem((name, role), "the column is missing", shown(table), usual)
        for role, usual in _USUAL.items()
        if picked[role] is None and role != "speaker"
    ]
    if missing:
        raise Invalid(*missing)
    by, split = options.split.by, _split_of(name, "manifest")
    if by not in (None, SPLIT) and by not in table.columns:
        raise Invalid(Problem(("options", "split", "by"), "no such column", by, shown(table)))
    for row in table.iter_rows(named=True):
        given = {role: row[column] for role, column in picked.items() if column}
        speaker = given.get("speaker")
        yield Line(
            (name, "line", row[LINE]),
            given["audio"],
            given["text"],
            None if speaker is None else str(speaker),
            str(row[by]) if by in row else split,
        )


def _saved(archive: Archive, name: str, folder: str) -> Path:
    path = Path(folder) / "manifest"
    with path.open("wb") as file:
        for chunk in archive.chunks(name):
            file.write(chunk)
    return path


def _of_transcript(archive: Archive, name: str, options: DatasetOptions) -> Iterator[Line]:
    split = _split_of(name, "transcripts")
    for number, line in enumerate(_text(archive, name).split("\n"), start=1):
        if line.strip():
            sound, _, text = line.strip().partition(" ")
            yield Line((name, "line", number), sound, text, sound.partition("-")[0], split)


def _of_text(archive: Archive, name: str, options: DatasetOptions) -> Iterator[Line]:
    # By its full path, since other folders may have a sound of that name.
    yield Line((name,), name[: -len(".txt")], _text(archive, name), None, _split_of(name, "texts"))


def _text(archive: Archive, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(
            Problem((name,), "not UTF-8", f"byte {error.start + 1}", "UTF-8 text")
        ) from None


# Which sound it is said in


class _Shelf:
    """The sounds of an archive, by their paths and by their names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._by_path: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}
        for name in filter(_is_sound, names):
            path = PurePosixPath(_plain(name))
            for key in (str(path), str(path.with_suffix(""))):
                self._by_path.setdefault(key, name)
            for key in {path.name, path.stem}:
                self._by_name.setdefault(key, []).append(name)

    def find(self, given: str, manifest: str) -> str | None:
        """The sound that a manifest means by a path: beside it, from the top, or the only one of that name."""
        path = PurePosixPath(_plain(given))
        folder = PurePosixPath(_plain(manifest)).parent
        for place in (*(folder / beside / path for beside in _BESIDE), path):
            if found := self._by_path.get(str(place)):
                return found
        named = self._by_name.get(path.name, [])
        return named[0] if len(named) == 1 else None


def _plain(path: str) -> str:
    return normalize("NFC", path.replace("\\", "/"))


def _found(lines: Sequence[Line], shelf: _Shelf) -> list[tuple[Line, str, str]]:
    """Each line, the sound it is about, and its text. Raises Invalid for those without either."""
    faults, found = Faults(), []
    for line in lines:
        given = line.sound
        sound = shelf.find(given, str(line.place[0])) if isinstance(given, str) and given else None
        if sound is None:
            allowed = "the path of a sound in the archive"
            faults.add((*line.place, "audio"), "no such sound", short(given), allowed)
        text = " ".join(normalize("NFC", line.text).split()) if isinstance(line.text, str) else ""
        if not text:
            faults.add((*line.place, "text"), "there is no text", short(line.text), "what is said")
        elif len(text) > MAX_TEXT or any(category(c) in ("Cc", "Cs") for c in text):
            allowed = f"at most {MAX_TEXT:,} characters, none of them a control character"
            faults.add((*line.place, "text"), "not a text of speech", short(text), allowed)
        if sound is not None and text:
            found.append((line, sound, text))
    faults.check()
    if not found:
        raise Invalid(Problem((), "the manifest has no lines", None, "one line per sound"))
    return found


def _look(frame: pl.DataFrame) -> pl.DataFrame:
    """What every sound of a frame is like. Raises Invalid, naming those that cannot be decoded."""
    seen = each(frame["audio"], lambda _, data: inspect(data), frame["name"])
    return pl.DataFrame(
        seen,
        schema={"seconds": pl.Float64, "rate": pl.Int64, "channels": pl.Int64, "format": pl.String},
        orient="row",
    )


def _unused(names: Sequence[str], used: pl.Series) -> str:
    rest = sorted(set(filter(_is_sound, names)) - set(used))
    return json.dumps({"count": len(rest), "first": rest[:_LISTED]})


def unused(splits: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """The sounds that nothing was said of, in all archives that were uploaded."""
    told = {text for frame in splits.values() for text in frame[UNUSED].unique()}
    archives = [json.loads(text) for text in sorted(told)]
    return {
        "count": sum(archive["count"] for archive in archives),
        "first": [name for archive in archives for name in archive["first"]][:_LISTED],
    }
