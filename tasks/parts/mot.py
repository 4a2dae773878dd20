"""The lines of a gt.txt: objects in the frames of a sequence, as the MOTChallenge writes them (Milan et al., 2016)."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tasks.parts.archives import Archive
from tasks.parts.labels import MAX_CLASSES
from tasks.parts.marked import MAX_OBJECTS, Box, Loc, check_label
from tasks.parts.problems import Invalid, Problem, short

CLASSES = "classes.txt"
NO_CLASS = "object"
"""The label of what has no class."""
_FIELDS = ("frame", "id", "left", "top", "width", "height", "conf", "class", "visibility", "unused")
_FEWEST = 6
_LINE = "frame,id,left,top,width,height[,conf[,class[,visibility]]]"
_LARGEST = 1e6
"""Of any number: sides of frames are far below."""


class Line(NamedTuple):
    """An object in a frame, as a line says."""

    frame: int
    track: int
    label: str
    box: Box
    ignored: bool
    """Whether nothing is to be judged by it."""


def read_lines(
    archive: Archive, path: str, frames: int, classes: Sequence[str] | None
) -> list[Line]:
    """The objects of a gt.txt about so many frames. Raises Invalid with every line that is wrong."""
    found, problems, seen = [], list[Problem](), dict[tuple[int, int], int]()
    counts: defaultdict[int, int] = defaultdict(int)
    for number, text in enumerate(text_of(archive, path).splitlines(), 1):
        if not text.strip():
            continue
        where = (path, "line", number)
        try:
            line = read_line(text, frames, classes, where)
        except Invalid as error:
            problems += error.problems
        else:
            first = seen.setdefault((line.frame, line.track), number)
            counts[line.frame] += 1
            if first != number:
                msg = "the object is in this frame already"
                problems.append(Problem(where, msg, f"id {line.track}", f"once; see line {first}"))
            if counts[line.frame] > MAX_OBJECTS:
                msg = "too many objects in one frame"
                problems.append(Problem(where, msg, counts[line.frame], MAX_OBJECTS))
            found.append(line)
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    return found


def read_line(text: str, frames: int, classes: Sequence[str] | None, where: Loc) -> Line:
    """A line of a gt.txt about so many frames. Raises Invalid, naming the field."""
    parts = [part.strip() for part in text.rstrip(", \t\r").split(",")]
    if not _FEWEST <= len(parts) <= len(_FIELDS):
        raise Invalid(Problem(where, "not an object", short(text), _LINE))
    values = dict(zip(_FIELDS, map(_number, parts), strict=False))
    said = dict(zip(_FIELDS, map(short, parts), strict=False))
    faults = [name for name, value in values.items() if math.isnan(value)]
    if faults:
        allowed = f"a number between {-_LARGEST:,.0f} and {_LARGEST:,.0f}"
        raise Invalid(
            *(Problem((*where, name), "not a number", said[name], allowed) for name in faults)
        )
    frame, track, left, top, width, height = (values[name] for name in _FIELDS[:_FEWEST])
    if not (frame.is_integer() and 1 <= frame <= frames):
        allowed = f"1 to {frames}, the frames of the sequence"
        raise Invalid(Problem((*where, "frame"), "no such frame", said["frame"], allowed))
    if not (track.is_integer() and track >= 0):
        allowed = "a whole number from 0, the same in all frames"
        raise Invalid(Problem((*where, "id"), "not the id of an object", said["id"], allowed))
    if width <= 0 or height <= 0:
        allowed = "a width and a height above 0"
        raise Invalid(Problem(where, "not a box", parts[2:_FEWEST], allowed))
    label = _label(values.get("class", -1.0), classes, (*where, "class"))
    box = left, top, left + width, top + height
    return Line(int(frame), int(track), label, box, values.get("conf", 1.0) == 0)


def _number(text: str) -> float:
    """A number within reason; NaN for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) <= _LARGEST else math.nan


def _label(kind: float, classes: Sequence[str] | None, where: Loc) -> str:
    """The name of a class by its number; -1 where there is one class alone. Raises Invalid."""
    if kind == -1:
        return NO_CLASS
    most = MAX_CLASSES if classes is None else len(classes)
    if not (kind.is_integer() and 1 <= kind <= most):
        allowed = f"1 to {most}" if classes is None else f"1 to {most}, the lines of {CLASSES}"
        raise Invalid(Problem(where, "no such class", kind, allowed))
    return str(int(kind)) if classes is None else classes[int(kind) - 1]


def read_classes(archive: Archive, folder: str) -> list[str] | None:
    """The names of the classes 1, 2, ..., from the nearest classes.txt on the way up. Raises Invalid."""
    names = set(archive.names)
    while (path := f"{folder}/{CLASSES}".lstrip("/")) not in names:
        if not folder:
            return None
        folder = folder.rpartition("/")[0]
    lines = text_of(archive, path).rstrip().splitlines()
    return [check_label(line, (path, "line", number)) for number, line in enumerate(lines, 1)]


def text_of(archive: Archive, path: str) -> str:
    """The text of a member. Raises Invalid when it is none."""
    try:
        return archive.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(Problem((path,), "not text", short(str(error)), "UTF-8")) from None
