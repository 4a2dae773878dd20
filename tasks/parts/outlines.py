"""Outlines of objects as COCO has them, polygons or run lengths, to masks and back (Lin et al., 2014)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pycocotools import mask as coco

from tasks.parts.archives import Archive
from tasks.parts.coco import read_coco
from tasks.parts.marked import Loc, Marked, Picture, number
from tasks.parts.masks import Mask
from tasks.parts.pictures import look
from tasks.parts.problems import Invalid, Problem, short

MOST_NUMBERS = 400_000
"""Numbers of an outline, of all of its polygons."""
_RUNS = '{"size": [height, width], "counts": [...]}'
_POLYGONS = "[[x1, y1, x2, y2, x3, y3, ...], ...]"


def drawn(marked: Marked, size: tuple[int, int]) -> Mask:
    """The outline of an object as a mask (height, width). Raises Invalid when it is none of an image of that size."""
    where, outline = (*marked.where, "segmentation"), marked.segmentation
    if isinstance(outline, list):
        return _of_polygons(outline, size, where)
    if isinstance(outline, dict):
        return _of_runs(outline, size, where)
    allowed = f"polygons, {_POLYGONS}, or run lengths, {_RUNS}"
    raise Invalid(Problem(where, "no outline", short(outline), allowed))


def _of_polygons(polygons: list[Any], size: tuple[int, int], where: Loc) -> Mask:
    height, width = size
    sane = []
    total = 0
    for place, polygon in enumerate(polygons):
        numbers = [number(value) for value in polygon] if isinstance(polygon, list) else []
        total += len(numbers)
        if len(numbers) < 6 or len(numbers) % 2 or None in numbers or total > MOST_NUMBERS:
            allowed = f"{_POLYGONS}, at most {MOST_NUMBERS:,} numbers"
            raise Invalid(Problem((*where, place), "not a polygon", short(polygon), allowed))
        # The work of drawing a line grows with its length, wherever it is.
        points = np.asarray(numbers, np.float64).reshape(-1, 2).clip(0, [width, height])
        sane.append(points.ravel().tolist())
    return decoded(coco.merge(coco.frPyObjects(sane, height, width)))


def _of_runs(outline: dict[str, Any], size: tuple[int, int], where: Loc) -> Mask:
    height, width = size
    if outline.get("size") != [height, width]:
        found = short(outline.get("size"))
        raise Invalid(
            Problem((*where, "size"), "not the size of its image", found, [height, width])
        )
    given, pixels = outline.get("counts"), height * width
    counts: Any = _unpacked(given) if isinstance(given, str) else given
    sound = isinstance(counts, list) and all(type(c) is int and 0 <= c <= pixels for c in counts)
    if not sound or sum(counts) != pixels:
        msg, allowed = "not run lengths of so many pixels", f"{pixels:,} in all"
        raise Invalid(Problem((*where, "counts"), msg, short(given), allowed))
    return _filled(counts, size)


def _filled(counts: list[int], size: tuple[int, int]) -> Mask:
    """The mask of run lengths, which go down its columns, of 0 and 1 in turn."""
    height, width = size
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def _unpacked(text: str) -> list[int] | None:
    """The run lengths in COCO's own text: groups of 5 bits from the lowest up, differences from the third on.

    Not left to pycocotools, which trusts what it reads. None for a text that is none.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if not shift else None


def read_outlined(archive: Archive) -> tuple[pl.DataFrame, list[Picture]]:
    """One row per image that COCO's annotations list (`image`, `name`, `split`, its facts), and what is marked in it.

    Raises Invalid for images that cannot be decoded, or have another size than their annotations say.
    """
    pictures = read_coco(archive)
    frame = pl.DataFrame(
        {
            "image": [archive.read(picture.name) for picture in pictures],
            "name": [picture.name for picture in pictures],
            "split": [picture.split for picture in pictures],
        },
        schema={"image": pl.Binary, "name": pl.String, "split": pl.String},
    )
    frame = frame.with_columns(look(frame))
    problems = [
        Problem(picture.where, "not the size of its image", picture.size, size)
        for picture, size in zip(pictures, frame.select("width", "height").rows(), strict=True)
        if picture.size not in (None, size)
    ]
    if problems:
        raise Invalid(*problems)
    return frame, pictures


def encoded(mask: Mask | NDArray[np.bool_]) -> str:
    """A mask as COCO's text of its run lengths."""
    text: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return text.decode()


def decoded(runs: Any) -> Mask:
    """The mask of run lengths, as pycocotools has them."""
    # Its own `decode` warns of what numpy 2 made of arrays.
    counts = _unpacked(runs["counts"].decode())
    assert counts is not None
    height, width = runs["size"]
    return _filled(counts, (height, width))


def of_text(text: str, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's text of run lengths of a mask (height, width) as pycocotools takes them."""
    return {"size": list(size), "counts": text.encode()}


def box_of(mask: Mask) -> list[float]:
    """Left, top, right and bottom of what a mask covers, which is a pixel at least."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def boxes_of(runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The boxes [x1, y1, x2, y2] around masks in run lengths."""
    boxes = [coco.toBbox(one).tolist() for one in runs]
    return [[x, y, x + width, y + height] for x, y, width, height in boxes]


def labels_of(pictures: Sequence[Picture]) -> list[str]:
    """The labels of the objects of all images, in order of their names."""
    return sorted({marked.label for picture in pictures for marked in picture.objects})
