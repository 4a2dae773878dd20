"""Archives of filmed sequences and the objects followed through them, as the MOTChallenge has them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser, Error
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from tasks.base import Upload
from tasks.parts.archives import SPLIT_FOLDERS, Archive, Limits, is_clutter, open_archive
from tasks.parts.clips import MAX_BYTES, MAX_FRAMES, Painter, inspect, open_clip
from tasks.parts.images import inspect as inspect_image
from tasks.parts.marked import OBJECT, is_image, split_of_folders
from tasks.parts.mot import read_classes, read_lines, text_of
from tasks.parts.problems import Invalid, Problem, short

MOT = "mot-challenge"
MOT_SENTENCE = (
    "A zip with a folder for each sequence, as the MOTChallenge has them: its frames as `video.mp4` (or MOV, WebM, "
    "MKV, AVI, GIF) or as images `img1/000001.jpg`, and `gt/gt.txt` with a line `frame,id,left,top,width,height,conf,"
    "class,visibility` for each object in a frame; frames count from 1, and what has the conf 0 is not judged by. "
    "`classes.txt` may hold the names of the classes 1, 2, ..., one on a line. Sequences within `train/`, "
    "`validation/` and `test/`, or whose names begin so, are split by that."
)
FOLLOWED = pl.Struct([*OBJECT.fields, pl.Field("track", pl.Int64)])
"""An object of a frame, and which one of its sequence it is; a crowd is one that is not judged by."""
MOST_STORED = 4 << 30
"""Bytes of all frames of an upload together."""

_LIMITS = Limits(member=MAX_BYTES, members=1_000_000)
_VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"}
_TRUTH, _INFO, _IMAGES = "gt/gt.txt", "seqinfo.ini", "img1"
_QUALITY = 95


class Filmed(NamedTuple):
    """A folder of an archive: its files by their paths within it."""

    name: str
    folder: str
    files: dict[str, str]


class Frames(NamedTuple):
    """The frames of a sequence as image files of one size, and whether there is colour in any."""

    files: list[bytes]
    size: tuple[int, int]
    colour: bool


def read_sequences(upload: Upload) -> pl.DataFrame:
    """One row per sequence: `name`, `frames`, their size and colour, `objects` of each frame, and `split`.

    `clipped` and `outside` count boxes that were cut at the edge of their frame, and left out beyond it; `split` is
    there when the archive has several. Raises Invalid with what is wrong in every sequence.
    """
    rows, problems, stored = [], list[Problem](), 0
    with open_archive(upload.path, _LIMITS) as archive:
        for sequence in sequences_of(archive):
            try:
                row = _read(archive, sequence)
            except Invalid as error:
                problems += error.problems
                if len(problems) >= Invalid.LIMIT:
                    break
                continue
            stored += sum(map(len, row["frames"]))
            if stored > MOST_STORED:
                allowed = f"at most {MOST_STORED:,} bytes of frames"
                raise Invalid(Problem((), "too many frames", f"{stored:,} bytes", allowed))
            rows.append(row)
    if problems:
        raise Invalid(*problems)
    schema = {
        "name": pl.String(),
        "frames": pl.List(pl.Binary),
        "width": pl.Int64(),
        "height": pl.Int64(),
        "colour": pl.Boolean(),
        "objects": pl.List(pl.List(FOLLOWED)),
        "clipped": pl.Int64(),
        "outside": pl.Int64(),
        "split": pl.String(),
    }
    frame = pl.DataFrame(rows, schema=schema)
    splits = set(frame["split"])
    if len(splits) == 1:
        return frame.drop("split")
    if None in splits:
        lone = frame.filter(frame["split"].is_null())["name"].to_list()
        allowed = "every sequence in one of the splits, or none of them"
        raise Invalid(*(Problem((name,), "in no split", None, allowed) for name in lone))
    return frame


def split_of_sequence(sequence: Filmed) -> str | None:
    """The split that its name begins with, or that a folder around it is named after."""
    first = re.match("[a-z]+", sequence.name.lower())
    own = SPLIT_FOLDERS.get(first[0]) if first else None
    return own or split_of_folders(f"{sequence.folder}/x")


def sequences_of(archive: Archive) -> list[Filmed]:
    """The folders that hold a sequence, in the order of their names. Raises Invalid when there are none."""
    folders: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in archive.names:
        if is_clutter(path):
            continue
        parts = path.split("/")
        # What a sequence is made of lies in it, or in a folder of it.
        if len(parts) > 1:
            folders["/".join(parts[:-1])][parts[-1]] = path
        if len(parts) > 2:
            folders["/".join(parts[:-2])]["/".join(parts[-2:])] = path
    found = [
        Filmed(folder.rpartition("/")[2], folder, files)
        for folder, files in sorted(folders.items())
        if _TRUTH in files or _INFO in files or _videos(files)
    ]
    if not found:
        raise Invalid(Problem((), "no sequences in the archive", None, f"sequence/{_TRUTH}"))
    return found


def _videos(files: Mapping[str, str]) -> list[str]:
    return [
        name for name in files if "/" not in name and PurePosixPath(name).suffix.lower() in _VIDEOS
    ]


def _read(archive: Archive, sequence: Filmed) -> dict[str, Any]:
    """The row of a sequence. Raises Invalid, naming its files and their lines."""
    if _TRUTH not in sequence.files:
        where = (sequence.folder, _TRUTH)
        raise Invalid(
            Problem(where, "the sequence has no objects", None, "a file; or leave it out")
        )
    info = _info(archive, sequence)
    frames = _frames(archive, sequence, info.get("imdir", _IMAGES))
    _check_info(sequence, info, frames)
    classes = read_classes(archive, sequence.folder)
    lines = read_lines(archive, sequence.files[_TRUTH], len(frames.files), classes)
    objects: list[list[dict[str, Any]]] = [[] for _ in frames.files]
    clipped = outside = 0
    width, height = frames.size
    for line in lines:
        x1, y1, x2, y2 = line.box
        inside = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            outside += 1
            continue
        clipped += inside != line.box
        corners = dict(zip(("x1", "y1", "x2", "y2"), inside, strict=True))
        whose = {"label": line.label, "crowd": line.ignored, "track": line.track}
        objects[line.frame - 1].append({**whose, **corners})
    return {
        "name": sequence.name,
        "frames": frames.files,
        "width": width,
        "height": height,
        "colour": frames.colour,
        "objects": objects,
        "clipped": clipped,
        "outside": outside,
        "split": split_of_sequence(sequence),
    }


# Frames


def _frames(archive: Archive, sequence: Filmed, folder: str) -> Frames:
    """The frames of a sequence, from its video or its images. Raises Invalid."""
    videos = _videos(sequence.files)
    images = sorted(
        name for name in sequence.files if name.startswith(f"{folder}/") and is_image(name)
    )
    if len(videos) + bool(images) != 1:
        found = [*videos, *([f"{folder}/"] if images else [])]
        allowed = f"one video, or images in {folder}/"
        raise Invalid(Problem((sequence.folder,), "frames of one kind are needed", found, allowed))
    if videos:
        path = sequence.files[videos[0]]
        try:
            return of_video(archive.read(path))
        except Invalid as error:
            raise Invalid(*(p._replace(loc=(path, *p.loc)) for p in error.problems)) from None
    return _of_images(archive, [sequence.files[name] for name in images])


def of_video(data: bytes) -> Frames:
    """All frames of a video, as JPEG files that lose next to nothing. Raises Invalid."""
    facts = inspect(data)
    return Frames(list(packed(data)), (facts.width, facts.height), facts.colour)


def packed(data: bytes) -> Iterator[bytes]:
    """The frames of a video one by one, as JPEG files, all of the size of the first. Raises Invalid."""
    painter, size = Painter(), None
    with open_clip(data) as clip:
        for frame in clip.pictures(range(clip.frames)):
            picture, file = painter.paint(frame, size), BytesIO()
            size = picture.size
            picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
            yield file.getvalue()


def _of_images(archive: Archive, paths: Sequence[str]) -> Frames:
    """Images whose names are the numbers of their frames. Raises Invalid."""
    numbered = sorted((_number(path), path) for path in paths)
    for place, (number, path) in enumerate(numbered, 1):
        if number != place:
            msg = "frames are numbered from 1, and none may lack"
            raise Invalid(Problem((path,), msg, number if number >= 0 else None, place))
    if len(paths) > MAX_FRAMES:
        raise Invalid(Problem((paths[0],), "too many frames", len(paths), MAX_FRAMES))
    files, problems, size, colour = [], list[Problem](), None, False
    for _, path in numbered:
        data = archive.read(path)
        try:
            facts = inspect_image(data)
        except Invalid as error:
            problems += [p._replace(loc=(path, *p.loc)) for p in error.problems]
            continue
        its_size = facts.width, facts.height
        size, colour = size or its_size, colour or facts.colour
        if its_size != size:
            problems.append(Problem((path,), "another size than the frames before", its_size, size))
        files.append(data)
    if problems or size is None:
        raise Invalid(*problems)
    return Frames(files, size, colour)


def _number(path: str) -> int:
    """The number at the end of a file's name; -1: there is none."""
    found = re.search(r"(\d{1,9})$", PurePosixPath(path).stem)
    return int(found[1]) if found else -1


# What a sequence says of itself


def _info(archive: Archive, sequence: Filmed) -> dict[str, str]:
    """The entries of seqinfo.ini, if there is one. Raises Invalid."""
    path = sequence.files.get(_INFO)
    if path is None:
        return {}
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text_of(archive, path))
    except Error as error:
        raise Invalid(Problem((path,), "not an INI file", short(str(error)), None)) from None
    return {name: value for section in parser.sections() for name, value in parser.items(section)}


def _check_info(sequence: Filmed, info: Mapping[str, str], frames: Frames) -> None:
    """Raises Invalid where a sequence is not as it says itself."""
    real = {"seqlength": len(frames.files), "imwidth": frames.size[0], "imheight": frames.size[1]}
    problems = [
        Problem((sequence.files[_INFO], name), "the frames are otherwise", short(info[name]), value)
        for name, value in real.items()
        if name in info and info[name].strip() != str(value)
    ]
    if problems:
        raise Invalid(*problems)
