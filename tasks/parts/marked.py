"""Images and the objects marked in them: what the readers of every format of annotations share."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from tasks.parts.archives import SPLIT_FOLDERS, Archive, is_clutter
from tasks.parts.pictures import look
from tasks.parts.problems import Invalid, Problem, short

Loc = tuple[str | int, ...]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, from the upper left corner of the image."""

IMAGE_SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
}
MAX_OBJECTS = 2_000
"""Objects of one image."""
MAX_LABEL = 200
LEAST_INSIDE = 0.5
"""Share of a box that must lie in its image: what is outside is cut off."""
OBJECT = pl.Struct(
    {
        "label": pl.String,
        "x1": pl.Float64,
        "y1": pl.Float64,
        "x2": pl.Float64,
        "y2": pl.Float64,
        "crowd": pl.Boolean,
    }
)
"""An object of an example, in pixels; a crowd is a region that is neither learned from nor scored."""


class Marked(NamedTuple):
    """An object of an image, as its file says."""

    label: str
    box: Box
    where: Loc
    """Its place in the upload, for problems."""
    crowd: bool = False
    segmentation: Any = None
    """Its outline as COCO has it, unread: polygons or run lengths."""


class Picture(NamedTuple):
    """An image of an archive and what is marked in it."""

    name: str
    """The member of the archive."""
    split: str | None
    objects: list[Marked]
    where: Loc
    size: tuple[int, int] | None = None
    """Width and height, if the annotations tell."""
    in_shares: bool = False
    """Whether boxes are in shares of the sides, not in pixels."""


def read_pictures(archive: Archive, pictures: Sequence[Picture]) -> pl.DataFrame:
    """One row per picture: `image`, `name`, `split`, its facts, `objects`, and what became of the boxes.

    `clipped` and `empty` count boxes that were cut at the edge of the image, and left out since they
    have no area; `unlisted`, in the first row, the images of the archive that are no picture's.
    Raises Invalid for images that cannot be decoded or have another size than their annotations say,
    and for boxes outside of them.
    """
    frame = pl.DataFrame(
        {
            "image": [archive.read(picture.name) for picture in pictures],
            "name": [picture.name for picture in pictures],
            "split": [picture.split for picture in pictures],
        },
        schema={"image": pl.Binary, "name": pl.String, "split": pl.String},
    )
    frame = frame.with_columns(look(frame))
    rows, problems = [], list[Problem]()
    for picture, size in zip(pictures, frame.select("width", "height").iter_rows(), strict=True):
        if picture.size not in (None, size):
            msg = "the image has another size than its annotations say; is it turned by EXIF?"
            problems.append(Problem(picture.where, msg, _sides(size), _sides(picture.size)))
            continue
        try:
            rows.append(_placed(picture, size))
        except Invalid as error:
            problems += error.problems
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    known = {picture.name for picture in pictures}
    unlisted = sum(name not in known for name in images_of(archive))
    counts = {"clipped": pl.Int64(), "empty": pl.Int64()}
    schema: dict[str, pl.DataType] = {"objects": pl.List(OBJECT), **counts}
    placed = pl.DataFrame(rows, schema=schema, orient="row")
    strangers = pl.Series("unlisted", [unlisted, *[0] * (frame.height - 1)], dtype=pl.Int64)
    return frame.with_columns(placed).with_columns(strangers)


def _sides(size: tuple[int, int] | None) -> str:
    return " x ".join(map(str, size or ()))


def _placed(picture: Picture, size: tuple[int, int]) -> tuple[list[dict[str, Any]], int, int]:
    """The objects within an image, and how many boxes were clipped, and empty. Raises Invalid."""
    objects, problems, clipped, empty = [], list[Problem](), 0, 0
    for marked in picture.objects:
        try:
            box, was_clipped = fitted(marked, size, in_shares=picture.in_shares)
        except Invalid as error:
            problems += error.problems
            continue
        if box is None:
            empty += 1
            continue
        clipped += was_clipped
        x1, y1, x2, y2 = box
        corners = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        objects.append({"label": marked.label, **corners, "crowd": marked.crowd})
    if problems:
        raise Invalid(*problems)
    return objects, clipped, empty


def fitted(
    marked: Marked, size: tuple[int, int], *, in_shares: bool = False
) -> tuple[Box | None, bool]:
    """A box in pixels, within an image (width, height), and whether it had to be clipped for that.

    None for a box without area. Raises Invalid for one that is not a box, or lies outside for the most part.
    """
    width, height = size
    x1, y1, x2, y2 = marked.box
    if in_shares:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        allowed = "finite numbers, the right side not left of the left one"
        raise Invalid(Problem(marked.where, "not a box", short(marked.box), allowed))
    inside = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    area = (x2 - x1) * (y2 - y1)
    if area == 0:
        return None, False
    within = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
    if within < LEAST_INSIDE * area:
        found = [round(side, 2) for side in (x1, y1, x2, y2)]
        msg = "the box is outside of its image for the most part"
        raise Invalid(Problem(marked.where, msg, found, f"within {width} x {height} pixels"))
    return inside, inside != (x1, y1, x2, y2)


class Gallery:
    """The images of an archive, found by the names that annotations give them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_base: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            if is_image(name):
                base = name.rpartition("/")[2]
                self._by_base[base].append(name)
                self._by_stem[base.rpartition(".")[0]].append(name)

    def find(self, called: str, beside: str, split: str | None) -> str:
        """The image `called` so by a file of annotations: of several the one near that file, of its split, or in a
        folder `images`.

        Raises Invalid, without a place, when there is none, or no telling which.
        """
        called = called.replace("\\", "/").removeprefix("./")
        base = called.rpartition("/")[2]
        ending = [n for n in self._by_base.get(base, []) if f"/{n}".endswith(f"/{called}")]
        if not ending:
            raise Invalid(
                Problem((), "the archive has no such image", short(called), "a file in it")
            )
        if found := self._nearest(ending, beside, split):
            return found
        raise Invalid(Problem((), "several images have this name", ending[:5], "one"))

    def named(self, stem: str, beside: str, split: str | None) -> str | None:
        """The image of that name before its suffix, chosen as by `find`, if there is one and no doubt."""
        return self._nearest(self._by_stem.get(stem, []), beside, split)

    def _nearest(self, ending: list[str], beside: str, split: str | None) -> str | None:
        folder = beside.rpartition("/")[0]
        nearby = [name for name in ending if name.rpartition("/")[0] == folder]
        of_split = [
            name for name in ending if split is not None and split_of_folders(name) == split
        ]
        named_so = [name for name in ending if "images" in name.lower().split("/")]
        for found in (nearby, of_split, named_so, ending):
            if len(found) == 1:
                return found[0]
        return None


def is_image(name: str) -> bool:
    """Whether a member of an archive is an image, by its name."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_clutter(name)


def images_of(archive: Archive) -> list[str]:
    return [name for name in archive.names if is_image(name)]


def split_of_folders(path: str) -> str | None:
    """The split that a folder on the way is named after, `train` or `train2017`; the innermost counts."""
    folders = [re.fullmatch(r"([a-z]+)\d*", part.lower()) for part in path.split("/")[:-1]]
    words = [found[1] for found in reversed(folders) if found]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)


def split_of(path: str) -> str | None:
    """The split that a word of a file's own name names, or else one of its folders."""
    words = re.findall("[a-z]+", path.rpartition("/")[2].lower())
    own = [SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS]
    return own[0] if own else split_of_folders(path)


def check_label(label: Any, where: Loc) -> str:
    """The name of a class. Raises Invalid for what is none."""
    if not isinstance(label, str) or not 0 < len(label.strip()) <= MAX_LABEL:
        allowed = f"a name of at most {MAX_LABEL} characters"
        raise Invalid(Problem(where, "not the name of a class", short(label), allowed))
    return label.strip()


def number(value: Any) -> float | None:
    """A number as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
