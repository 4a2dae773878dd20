"""Images fitted into squares without stretching them, in the middle between margins."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tasks.parts.images import Pixels, open_image
from tasks.parts.media import each


class Letter(NamedTuple):
    """An image in a square: pixels (C, side, side) and the width and height it was sent with."""

    pixels: Pixels
    size: tuple[int, int]


def letterbox(data: bytes, side: int, channels: int, margin: Sequence[float]) -> Letter:
    """An encoded image, its longer side as long as the square's; `margin` is the colour around it.

    Raises Invalid like `open_image`.
    """
    image = open_image(data)
    size, mode = image.size, "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height, left, top = fit(size, side)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    square: NDArray[np.uint8] = np.empty((side, side, channels), np.uint8)
    square[:] = np.round(margin)
    square[top : top + height, left : left + width] = np.asarray(image).reshape(
        height, width, channels
    )
    return Letter(square.transpose(2, 0, 1), size)


def fit(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Width, height, left and top in the square, in pixels, of an image of that size."""
    longer = max(size)
    width, height = (max(1, round(s * side / longer)) for s in size)
    return width, height, (side - width) // 2, (side - height) // 2


def letterbox_all(
    images: pl.Series, side: int, channels: int, margin: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A column of encoded images as pixels (N, channels, side, side) uint8 and sizes (N, 2) float32.

    Raises Invalid, at `row`, for images that cannot be decoded.
    """
    pixels = torch.empty((len(images), channels, side, side), dtype=torch.uint8)
    sizes = torch.empty((len(images), 2))

    def place(row: int, data: bytes) -> None:
        letter = letterbox(data, side, channels, margin)
        pixels[row] = torch.from_numpy(letter.pixels)
        sizes[row] = torch.tensor(letter.size)

    each(images, place)
    return pixels, sizes


def corners(sizes: Tensor, side: int) -> Tensor:
    """Where images of these sizes (B, 2) lie in their squares: boxes (B, 4) in shares of the side."""
    # As `fit` does, in double precision: half a pixel may not fall to the other side.
    scaled = sizes.double() * side / sizes.double().amax(1, keepdim=True)
    inside = scaled.round().clamp(min=1)
    start = ((side - inside) / 2).floor()
    return (torch.cat([start, start + inside], 1) / side).float()
