"""Columns of images: looked at, described, and measured."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

from models.base import Architecture
from models.parts.options import AUTO, Plain
from models.pretrained_image import COLOURS, PretrainedImage, Shown
from tasks.parts.examples import pieces
from tasks.parts.images import ImageFacts, Size, decode_all, inspect, sides
from tasks.parts.media import each
from tasks.parts.problems import Invalid, Problem

LARGEST = 512
"""Side of squares that are not asked for, at the most."""
SAMPLE_PIXELS = 1 << 24
"""Enough to take their mean and spread from."""


class Squares(Plain):
    """How images are shown to a backbone, which relies on it: as squares, channels of a mean and spread."""

    side: int
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]


def as_shown(base: Any) -> dict[str, Any]:
    """The fields of `Squares`, of the codec of a base. Raises Invalid when that does not read images so."""
    if not isinstance(base, Squares):
        allowed = "a model of another task on images"
        raise Invalid(Problem(("base",), "does not read images as this task does", None, allowed))
    return {name: getattr(base, name) for name in Squares.model_fields}


def published_look(architecture: Architecture) -> Shown:
    """How a published network was shown images."""
    assert isinstance(architecture, PretrainedImage)
    return architecture.shown or Shown()


def published_squares(architecture: Architecture, side: int) -> Squares:
    """Squares of that side, of the colours that a published network was shown."""
    shown = published_look(architecture)
    return Squares(side=side, channels=COLOURS, mean=shown.mean, std=shown.std)


def fitting_channels(architecture: Any, asked: Any, *, colour: bool) -> Any:
    """Those asked for, or else what suits the network, and whether there is colour to be seen.

    Raises Invalid for brightness alone before a published network.
    """
    published = isinstance(architecture, PretrainedImage)
    if published and asked not in (AUTO, COLOURS):
        message = "a published network looks at colours, of which grey is one"
        raise Invalid(Problem(("task", "channels"), message, asked, [COLOURS]))
    if asked != AUTO:
        return asked
    return COLOURS if published or colour else 1


def fitting_side(architecture: Any, typical: float, least: int, most: int, step: int) -> int:
    """The `typical` side of images in steps, within bounds, or within those of a published network.

    That one knows images of the side it was shown; half of it costs a quarter, and is still known.
    """
    if isinstance(architecture, PretrainedImage):
        most = max(least, min(LARGEST, published_look(architecture).side) // step * step)
        least = max(least, math.ceil(most / 2 / step) * step)
    return max(least, min(most, math.ceil(typical / step) * step))


def look(frame: pl.DataFrame, smallest: int = 1) -> pl.DataFrame:
    """What every image of a frame is like.

    Raises Invalid, naming those that cannot be decoded, or else those with a side of fewer pixels than `smallest`.
    """
    seen = each(frame["image"], lambda _, data: inspect(data), frame["name"])
    allowed = f"sides of at least {smallest} pixels"
    problems = [
        Problem((name,), "the image is too small", f"{facts.width} x {facts.height}", allowed)
        for name, facts in zip(frame["name"], seen, strict=True)
        if min(facts.width, facts.height) < smallest
    ]
    if problems:
        raise Invalid(*problems)
    return pl.DataFrame(seen, schema=ImageFacts._fields, orient="row")


def summary(facts: pl.DataFrame) -> dict[str, Any]:
    """Sizes in pixels, and how many images are stored how."""
    sizes = {
        name: {"min": side.min(), "median": side.median(), "max": side.max()}
        for name in ("width", "height")
        for side in [facts[name]]
    }
    return {
        **sizes,
        "modes": dict(facts["mode"].value_counts(sort=True).iter_rows()),
        "animated": int(facts["animated"].sum()),
        "colour": int(facts["colour"].sum()),
    }


def pixel_moments(
    images: pl.LazyFrame, size: Size, channels: int, count: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of so many images, in steps of 0 to 255."""
    decode = partial(decode_all, size=size, channels=channels)
    return moments(images, decode, math.prod(sides(size)), count)


def moments(
    files: pl.LazyFrame, decode: Callable[[pl.Series], Tensor], pixels: int, count: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of so many files, the only column, in steps of 0 to 255.

    `decode` makes images (N, C, H, W) of so many `pixels` of files.
    """
    wanted = max(1, SAMPLE_PIXELS // pixels)
    every, row, sample = max(1, count // wanted), 0, []
    for piece in pieces(files):
        sample.append(decode(piece.to_series().gather_every(every, offset=-row % every)))
        row += piece.height
    std, mean = torch.std_mean(torch.cat(sample).float(), dim=(0, 2, 3), correction=0)
    return mean.tolist(), std.clamp(min=1).tolist()
