"""Images of many sizes as columns of small tiles, and square crops taken from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.parts.columns import Ragged
from tasks.parts.images import Pixels

TILE = 16
"""Side of a tile in pixels."""


def tiled(pixels: Pixels) -> Tensor:
    """The tiles (T, C, TILE, TILE) of an image (C, H, W), row by row, filled up with black."""
    channels, height, width = pixels.shape
    image = torch.from_numpy(np.array(pixels))
    image = F.pad(image, (0, -width % TILE, 0, -height % TILE))
    rows, columns = image.shape[1] // TILE, image.shape[2] // TILE
    parts = image.view(channels, rows, TILE, columns, TILE).permute(1, 3, 0, 2, 4)
    return parts.reshape(rows * columns, channels, TILE, TILE)


def tiled_all(images: Sequence[Pixels], channels: int) -> Ragged:
    """A column of images, as long as they have tiles."""
    found = [tiled(pixels) for pixels in images]
    lengths = torch.tensor([0, *map(len, found)])
    none = torch.empty((0, channels, TILE, TILE), dtype=torch.uint8)
    return Ragged(torch.cat([none, *found]), lengths.cumsum(0))


def tiles_of(height: int, width: int) -> int:
    """How many tiles an image has."""
    return -(-height // TILE) * -(-width // TILE)


def whole(tiles: Tensor, height: int, width: int) -> Tensor:
    """The image (C, height, width) that tiles (T, C, TILE, TILE) were made of, those of padding aside."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    parts = tiles[: rows * columns].view(rows, columns, -1, TILE, TILE)
    image = parts.permute(2, 0, 3, 1, 4).reshape(tiles.shape[1], rows * TILE, columns * TILE)
    return image[:, :height, :width]


def cut(tiles: Tensor, sizes: Tensor, corners: Tensor, side: int, turns: Tensor) -> Tensor:
    """A square crop (B, C, side, side) of each image, given as tiles (B, T, C, TILE, TILE).

    `sizes` (B, 2) and upper left `corners` (B, 2) are in pixels, down before across. `turns` (B,) in [0, 8) says
    which of the eight ways a square can lie. What lies outside of an image repeats its edge.
    """
    rows, columns = _turned(side, turns)
    last = (sizes - 1).view(-1, 2, 1, 1)
    down = (corners[:, 0, None, None] + rows).minimum(last[:, 0])
    across = (corners[:, 1, None, None] + columns).minimum(last[:, 1])
    per_row = -(-sizes[:, 1] // TILE)
    places = (down // TILE) * per_row[:, None, None] + across // TILE
    images = torch.arange(len(tiles), device=tiles.device)[:, None, None]
    return tiles[images, places, :, down % TILE, across % TILE].permute(0, 3, 1, 2)


def _turned(side: int, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Which row and column of an upright square each place of a turned one shows: twice (B, side, side)."""
    along = torch.arange(side, device=turns.device)
    down, across = along[None, :, None], along[None, None, :]
    is_swapped, is_flipped, is_mirrored = (
        ((turns >> bit) & 1).bool()[:, None, None] for bit in range(3)
    )
    rows, columns = torch.where(is_swapped, across, down), torch.where(is_swapped, down, across)
    return (
        torch.where(is_flipped, side - 1 - rows, rows),
        torch.where(is_mirrored, side - 1 - columns, columns),
    )
