"""Masks: images whose pixels say which class, or which object, each place belongs to."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from tasks.parts.images import as_stored, orientation_of
from tasks.parts.problems import Invalid, Problem

FORMATS = ("PNG", "BMP", "GIF", "TIFF")
"""What keeps every pixel as it was drawn."""
Mask = NDArray[np.uint8]
"""Classes (height, width), or 1 where an object is and 0 elsewhere."""
Numbers = NDArray[np.int64]
_GREY = {"1", "L", "P", "I", "LA"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""


class Region(NamedTuple):
    """What is known of a mask beside its pixels: the image it is of."""

    image: bytes
    width: int
    height: int


def read_numbers(data: bytes, *, coloured: bool = False) -> Numbers:
    """The number of each pixel (height, width) of a mask; `coloured`: its colour, as `packed` makes it a number.

    Raises Invalid when it is no image that keeps pixels as they are, or is of colours where numbers are wanted.
    """
    image = as_stored(data)
    if image.format not in FORMATS:
        msg = "not a format that keeps every pixel as it is"
        raise Invalid(Problem((), msg, image.format, list(FORMATS)))
    return _coloured(image) if coloured else _numbered(image)


def _coloured(image: Image.Image) -> Numbers:
    return packed(np.asarray(image.convert("RGB")))


def _numbered(image: Image.Image) -> Numbers:
    if image.mode in _GREY or image.mode.startswith("I;16"):
        numbers = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        return numbers.astype(np.int64)
    if image.mode not in ("RGB", "RGBA"):
        raise Invalid(Problem((), "no numbers are told by such pixels", image.mode, "8 or 16 bits"))
    pixels = np.asarray(image)[:, :, :3]
    if (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, 0].astype(np.int64)
    strange = pixels[(pixels != pixels[:, :, :1]).any(-1)][0]
    allowed = "numbers of classes; or labelmap.txt or classes.csv, which name each colour's class"
    raise Invalid(Problem((), "a mask of colours, and nothing says which", rgb(strange), allowed))


def packed(colours: NDArray[np.uint8]) -> Numbers:
    """Colours (..., 3) as numbers (...): red above green above blue."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    found: Numbers = (red << 16) | (green << 8) | blue
    return found


def rgb(colour: Sequence[Any] | NDArray[Any]) -> str:
    return ",".join(str(int(part)) for part in colour)


def upright(numbers: Numbers, region: Region) -> Numbers:
    """A mask as its image is shown.

    Tools that know no EXIF draw masks over images as their camera held them: where that alone makes
    the sizes match, the mask is turned as its image is. Raises Invalid when they do not match either way.
    """
    shown = (region.height, region.width)
    if numbers.shape == shown:
        return numbers
    turn = _TURNS.get(orientation_of(region.image))
    if turn is not None and numbers.shape == shown[::-1]:
        turned = Image.fromarray(numbers.astype(np.int32)).transpose(turn)
        if (turned.height, turned.width) == shown:
            return np.asarray(turned).astype(np.int64)
    height, width = numbers.shape
    found, allowed = f"{width} x {height}", f"{region.width} x {region.height} pixels"
    raise Invalid(Problem((), "not the size of its image", found, allowed))


def encode_mask(mask: Mask, *, bits: int = 8) -> bytes:
    """The file of a mask, a PNG of 8 bits to a pixel; or of 1, of what is 0 or not."""
    file = BytesIO()
    image = Image.fromarray(mask if bits == 8 else mask > 0)
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def decode_mask(data: bytes) -> Mask:
    """The pixels of a mask that `encode_mask` made."""
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image).astype(np.uint8)


def reduced(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask of another height and width, each pixel the nearest one of it."""
    height, width = size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def smoothed(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask of another height and width, each pixel of the class that has the largest share around it."""
    height, width = size
    if mask.shape == (height, width):
        return mask
    found = np.zeros((height, width), np.uint8)
    most = np.full((height, width), -1, np.int16)
    for number in np.flatnonzero(np.bincount(mask.ravel())):
        here = Image.fromarray(((mask == number) * 255).astype(np.uint8))
        share = np.asarray(here.resize((width, height), Image.Resampling.BILINEAR)).astype(np.int16)
        found[share > most] = number
        most = np.maximum(most, share)
    return found


def decode_masks(masks: pl.Series, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A column of masks that `encode_mask` made, of one height and width: (N, height, width)."""
    found = np.empty((len(masks), *size), np.uint8)
    for place, data in enumerate(masks):
        found[place] = reduced(decode_mask(data), size)
    return found
