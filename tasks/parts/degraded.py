"""Degraded images and what they should be, as columns; requests for them, and answers."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch

from models.parts.options import OneOf
from tasks.parts.columns import Columns, Dense
from tasks.parts.degradations import Colorization, Degradation, Inpainting, Paired
from tasks.parts.images import (
    Pixels,
    black,
    pixels_of,
    read_image,
    see_through,
)
from tasks.parts.media import each
from tasks.parts.problems import Invalid, Problem
from tasks.parts.tiles import TILE, tiled_all, tiles_of
from tasks.parts.whole_images import MOST_PIXELS, WholeImageCodec, refuse_large

_BLANK = 16


class Picture(NamedTuple):
    """A degraded image as the network reads it."""

    pixels: Pixels
    grey: bool


class ImageToImageCodec(WholeImageCodec):
    """Images as tiles of bytes beside their sizes, degraded here where they were uploaded as they should be."""

    degradation: OneOf[Degradation]
    channels: Literal[1, 3]
    largest_side: int

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        target = examples["target"] if "target" in examples.columns else None

        def read(row: int, data: bytes) -> tuple[Picture, Pixels]:
            return self.example(data, None if target is None else target[row])

        pairs = each(examples["image"], read)
        inputs = self.encode_inputs([picture for picture, _ in pairs]).inputs
        if not targets:
            return Columns(inputs)
        return Columns(inputs, (tiled_all([original for _, original in pairs], self.channels),))

    def example(self, data: bytes, target: bytes | None) -> tuple[Picture, Pixels]:
        """The degraded image and the original, the middle of large ones, from files. Raises Invalid."""
        pixels = pixels_of(data, self.channels)
        grey = _is_grey(pixels)
        if target is not None and isinstance(self.degradation, Paired):
            return self._pair(pixels, pixels_of(target, self.channels), grey=grey)
        if target is not None:
            pixels = pixels_of(target, self.channels)
            grey = _is_grey(pixels)
        factor = self.degradation.enlargement
        sides = [min(side, self.largest_side) // factor * factor for side in pixels.shape[1:]]
        original = middle(pixels, *sides)
        # The same holes and noise in every epoch, whatever order images come in.
        random = torch.Generator().manual_seed(zlib.crc32(original.tobytes()))
        return Picture(self.degradation.spoil(original, random), grey), original

    def _pair(self, pixels: Pixels, target: Pixels, *, grey: bool) -> tuple[Picture, Pixels]:
        factor = self.degradation.enlargement
        height, width = (min(side, self.largest_side // factor) for side in pixels.shape[1:])
        # The middles are those of the inputs, for both to show the same.
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        down = slice(top * factor, (top + height) * factor)
        across = slice(left * factor, (left + width) * factor)
        return Picture(middle(pixels, height, width), grey), target[:, down, across]

    def read_input(self, value: Any) -> Picture:
        given = dict(value) if isinstance(value, Mapping) else {"image": value}
        mask = given.pop("mask", None)
        data = read_image(given if isinstance(value, Mapping) else value)
        read = 1 if isinstance(self.degradation, Colorization) else self.channels
        pixels = pixels_of(data, read)
        refuse_large(pixels, MOST_PIXELS // self.degradation.enlargement**2)
        grey = _is_grey(pixels)
        if isinstance(self.degradation, Inpainting):
            return Picture(_pierced(pixels, _holes(data, mask, pixels.shape[1:])), grey)
        if mask is not None:
            allowed = "a model for inpainting"
            raise Invalid(Problem(("mask",), "means nothing here", self.degradation.name, allowed))
        return Picture(pixels, grey)

    def pixels_in(self, given: Picture) -> int:
        return int(given.pixels[0].size)

    def blank(self) -> Any:
        image = black(_BLANK)
        return (
            {"image": image, "mask": image} if isinstance(self.degradation, Inpainting) else image
        )

    def length(self, given: Picture) -> int:
        return tiles_of(*given.pixels.shape[1:])

    def most_together(self) -> int:
        return MOST_PIXELS // (TILE * self.degradation.enlargement) ** 2

    def encode_inputs(self, inputs: Sequence[Picture]) -> Columns:
        read = self.degradation.read(self.channels)
        tiles = tiled_all([picture.pixels for picture in inputs], read)
        sizes = [(*picture.pixels.shape[1:], int(picture.grey)) for picture in inputs]
        return Columns((tiles, Dense(torch.tensor(sizes, dtype=torch.int64).view(-1, 3))))


def middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle (C, height, width) of an image."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return np.ascontiguousarray(pixels[:, top : top + height, left : left + width])


def _is_grey(pixels: Pixels) -> bool:
    return len(pixels) == 1 or bool(
        (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()
    )


def _holes(data: bytes, mask: Any, shape: Sequence[int]) -> Pixels:
    """Where holes are (H, W), 255 in them, by a mask or what is see-through. Raises Invalid."""
    through = see_through(data)
    if mask is None and through is None:
        allowed = "a `mask`, white where the holes are, or an image that is see-through there"
        raise Invalid(Problem(("mask",), "nothing says where holes are", None, allowed))
    holes = np.zeros(shape, np.uint8) if through is None else through
    if mask is not None:
        holes = np.maximum(holes, _mask(mask, shape))
    return np.where(holes > 127, 255, 0).astype(np.uint8)


def _mask(mask: Any, shape: Sequence[int]) -> Pixels:
    """The one channel of a mask (H, W). Raises Invalid unless it has the image's size."""
    try:
        found: Pixels = pixels_of(read_image(mask), 1)[0]
    except Invalid as error:
        raise Invalid(*(p._replace(loc=("mask", *p.loc)) for p in error.problems)) from None
    if found.shape != tuple(shape):
        sizes = [f"{width} x {height}" for height, width in (found.shape, shape)]
        raise Invalid(Problem(("mask",), "not of the image's size", *sizes))
    return found


def _pierced(pixels: Pixels, holes: Pixels) -> Pixels:
    """The image with black holes, and these as one more channel."""
    return np.concatenate([np.where(holes > 0, 0, pixels), holes[None]]).astype(np.uint8)
