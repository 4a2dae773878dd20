"""Archives of images and masks in folders beside each other, and the files that name classes."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from tasks.parts.archives import Archive, is_clutter
from tasks.parts.marked import check_label, is_image, split_of_folders
from tasks.parts.masks import rgb
from tasks.parts.problems import Invalid, Problem

IMAGES = ("images", "image", "imgs", "img", "jpegimages")
CLASS_MASKS = ("masks", "mask", "labels", "annotations", "annots", "segmentationclass", "gt")
OBJECT_MASKS = ("instance_masks", "instances", "masks", "mask", "segmentationobject")
LABEL_FILES = ("classes.txt", "labels.txt", "labelmap.txt", "class_dict.csv", "classes.csv")
MOST_LABELS = 255
_MAX_TEXT = 1 << 20
_NOTES = {".txt", ".csv", ".json", ".md", ".yaml", ".yml", ".xml", ".pdf"}
"""Suffixes of what may lie beside images and masks, and is passed over."""
_UNKNOWN = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
"""Names by which the colour of what was not labelled goes."""
_ROW = re.compile(r"(?P<name>[^:#]+):(?P<rgb>\d+,\d+,\d+)(:.*)?")
_COLOURS_FIRST = re.compile(r"(?P<rgb>\d+\s+\d+\s+\d+)\s+(?P<name>.+)")


class Pair(NamedTuple):
    """An image of an archive and its mask, by the names of their members."""

    image: str
    mask: str
    split: str | None


class Classes(NamedTuple):
    """What an archive says of the classes that masks show."""

    labels: list[str]
    colours: dict[int, int] | None = None
    """Of each colour, packed into a number, the place of its label; that of what is unlabelled is -1."""


_Key = tuple[str | None, tuple[str, ...], str]


def pairs(archive: Archive, masks: Collection[str]) -> list[Pair]:
    """The images of an archive, each with the mask of the same name in a folder that is called one of `masks`.

    Folders of splits may be around these folders or in them. Raises Invalid for files that are neither,
    and for images and masks that have no partner, or more than one.
    """
    sides: dict[str, defaultdict[_Key, list[str]]] = {
        "image": defaultdict(list),
        "mask": defaultdict(list),
    }
    problems = list[Problem]()
    example = f"images/1.jpg and {next(iter(masks))}/1.png"
    for name in archive.names:
        side, key = _placed(name, masks)
        if side:
            sides[side][key].append(name)
        elif not (is_clutter(name) or _is_beside(name)):
            problems.append(
                Problem((name,), "neither in the folder of images nor of masks", name, example)
            )
    for names in [*sides["image"].values(), *sides["mask"].values()]:
        if len(names) > 1:
            problems.append(Problem((names[1],), "two files of one name", names[0], "one"))
    for here, there in (("image", "mask"), ("mask", "image")):
        for key, (name, *_) in sides[here].items():
            if key not in sides[there]:
                problems.append(Problem((name,), f"no {there} has its name", None, example))
    if not sides["image"] and not problems:
        problems.append(Problem((), "the archive has no images", None, example))
    if problems:
        raise Invalid(*problems)
    return [Pair(names[0], sides["mask"][key][0], key[0]) for key, names in sides["image"].items()]


def _placed(name: str, masks: Collection[str]) -> tuple[str | None, _Key]:
    """Whether a member is an image or a mask, and what both of a pair have in common."""
    path = PurePosixPath(name)
    folders = [part.lower() for part in path.parts[:-1]]
    kinds = [
        (n, "image" if f in IMAGES else "mask")
        for n, f in enumerate(folders)
        if f in {*IMAGES, *masks}
    ]
    if not kinds or not is_image(name):
        return None, (None, (), "")
    place, kind = kinds[-1]
    others = (*path.parts[:place], *path.parts[place + 1 : -1])
    return kind, (split_of_folders(name), others, path.stem)


def _is_beside(name: str) -> bool:
    """Whether a member is a note, or a mask for another task."""
    *folders, base = name.lower().split("/")
    return PurePosixPath(base).suffix in _NOTES or any(
        folder in (*CLASS_MASKS, *OBJECT_MASKS) for folder in folders
    )


def has_masks(archive: Archive, masks: Collection[str]) -> bool:
    """Whether there is a folder of masks."""
    return any(_placed(name, masks)[0] == "mask" for name in archive.names)


def read_classes(archive: Archive) -> Classes | None:
    """The classes that a file of the archive names, if one does. Raises Invalid when it cannot be read.

    One label a line, the first that of pixels of 0; or labels and their colours: `name:r,g,b` a line as CVAT
    writes them, `name,r,g,b` under a header, or `r g b name`.
    """
    found = [
        name
        for name in archive.names
        if name.rpartition("/")[2].lower() in LABEL_FILES and not is_clutter(name)
    ]
    if not found:
        return None
    texts = {name: _text(archive, name) for name in found}
    if len(set(texts.values())) > 1:
        raise Invalid(Problem((found[1],), "two files name the classes", found[0], "one"))
    return _parsed(found[0], texts[found[0]])


def _text(archive: Archive, name: str) -> str:
    data = b""
    for chunk in archive.chunks(name):
        data += chunk
        if len(data) > _MAX_TEXT:
            raise Invalid(Problem((name,), "too large", None, f"at most {_MAX_TEXT:,} bytes"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(Problem((name,), "not UTF-8", str(error), "UTF-8 text")) from None


def _parsed(name: str, text: str) -> Classes:
    lines = {n: line.strip() for n, line in enumerate(text.splitlines(), 1)}
    lines = {n: line for n, line in lines.items() if line and not line.startswith("#")}
    coloured = {n: _coloured(line) for n, line in lines.items()}
    header = next(iter(lines), 0)
    if name.lower().endswith(".csv"):
        coloured.pop(header, None)
    if coloured and all(coloured.values()):
        rows = {n: row for n, row in coloured.items() if row is not None}
        return _of_colours(name, rows)
    if name.lower().endswith((".csv", "labelmap.txt")):
        line = next((n for n, row in coloured.items() if row is None), header)
        found = lines.get(line)
        raise Invalid(Problem((name, "line", line), "no colour", found, "name:r,g,b or name,r,g,b"))
    return Classes(_labels(name, lines))


def _coloured(line: str) -> tuple[str, tuple[int, ...]] | None:
    """The label and the colour of a line, if it has one."""
    label, *parts = [part.strip() for part in line.split(",")]
    if match := _ROW.fullmatch(line) or _COLOURS_FIRST.fullmatch(line):
        label, parts = match["name"].strip(), re.split(r"[,\s]+", match["rgb"])
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    colour = tuple(int(part[:4]) for part in parts)
    return (label, colour) if max(colour) <= 255 else None


def _of_colours(name: str, rows: Mapping[int, tuple[str, tuple[int, ...]]]) -> Classes:
    known = {n: label for n, (label, _) in rows.items() if label.lower() not in _UNKNOWN}
    labels = _labels(name, known)
    colours: dict[int, int] = {}
    for line, (label, (red, green, blue)) in rows.items():
        number = (red << 16) | (green << 8) | blue
        if number in colours:
            found = rgb((red, green, blue))
            raise Invalid(Problem((name, "line", line), "two classes of one colour", found, "one"))
        colours[number] = labels.index(label) if line in known else -1
    return Classes(labels, colours)


def _labels(name: str, lines: Mapping[int, str]) -> list[str]:
    problems, labels = list[Problem](), list[str]()
    for line, text in lines.items():
        try:
            label = check_label(text, (name, "line", line))
        except Invalid as error:
            problems += error.problems
            continue
        if label in labels:
            problems.append(
                Problem((name, "line", line), "this label is there twice", label, "once")
            )
        labels.append(label)
    if len(labels) > MOST_LABELS:
        problems.append(Problem((name,), "too many classes", len(labels), f"at most {MOST_LABELS}"))
    if not labels:
        problems.append(Problem((name,), "names no classes", None, "a label in each line"))
    if problems:
        raise Invalid(*problems)
    return labels
