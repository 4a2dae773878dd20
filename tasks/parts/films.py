"""Columns of clips: looked at, described, decoded and measured."""

from typing import Any

import polars as pl
import torch
from torch import Tensor

from tasks.parts.clips import ClipFacts, frames, inspect
from tasks.parts.media import each
from tasks.parts.pictures import moments


def look(frame: pl.DataFrame) -> pl.DataFrame:
    """What every clip of a frame is like. Raises Invalid, naming those that cannot be decoded."""
    seen = each(frame["clip"], lambda _, data: inspect(data), frame["name"])
    return pl.DataFrame(seen, schema=ClipFacts._fields, orient="row")


def summary(facts: pl.DataFrame) -> dict[str, Any]:
    """How long clips are, how fast and how large, and how many are stored how."""
    measured = {
        name: {"min": column.min(), "median": column.median(), "max": column.max()}
        for name in ("frames", "seconds", "fps", "width", "height")
        for column in [facts[name]]
    }
    return {
        **measured,
        "codecs": dict(facts["codec"].value_counts(sort=True).iter_rows()),
        "colour": int(facts["colour"].sum()),
    }


def decode_all(clips: pl.Series, count: int, side: int, channels: int) -> Tensor:
    """A column of encoded clips as one tensor (N, count, channels, side, side) uint8.

    Raises Invalid, at `row`, for clips that cannot be decoded.
    """
    pixels = torch.empty((len(clips), count, channels, side, side), dtype=torch.uint8)
    places = pixels.numpy()

    def place(row: int, data: bytes) -> None:
        places[row] = frames(data, count, side, channels)

    each(clips, place)
    return pixels


def pixel_moments(
    clips: pl.LazyFrame, side: int, channels: int, count: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of the middle frames of so many clips, from 0 to 255."""
    return moments(clips, lambda some: decode_all(some, 1, side, channels)[:, 0], side**2, count)
