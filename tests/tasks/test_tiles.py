"""Images as tiles, and crops of them."""

import numpy as np
import pytest
import torch

from tasks.parts.tiles import cut, tiled, tiled_all, tiles_of, whole


def image(height: int, width: int) -> torch.Tensor:
    draw = np.random.default_rng(height * width)
    return torch.from_numpy(draw.integers(0, 256, (3, height, width), dtype=np.uint8))


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (17, 40), (33, 15)])
def test_an_image_comes_back_from_its_tiles(size: tuple[int, int]) -> None:
    pixels = image(*size)
    tiles = tiled(pixels.numpy())
    assert len(tiles) == tiles_of(*size)
    assert torch.equal(whole(tiles, *size), pixels)


def crops(turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two crops of 20 pixels from images of two sizes, and the places they should show."""
    images = [image(40, 50), image(30, 64)]
    column = tiled_all([pixels.numpy() for pixels in images], 3)
    tiles, _ = column.take(torch.arange(2))
    corners = torch.tensor([[3, 30], [10, 0]])
    sizes, turns = torch.tensor([[40, 50], [30, 64]]), torch.tensor([turn, turn])
    expected = [images[0][:, 3:23, 30:50], images[1][:, 10:30, 0:20]]
    return cut(tiles, sizes, corners, 20, turns), torch.stack(expected)


def test_a_crop_may_lie_across_tiles() -> None:
    found, expected = crops(0)
    assert torch.equal(found, expected)


def test_the_eight_turns_are_all_there_are() -> None:
    ways = set()
    for turn in range(8):
        found, upright = crops(turn)
        same = [
            (quarters, mirrored)
            for quarters in range(4)
            for mirrored in (False, True)
            if torch.equal(
                found, (upright.flip(3) if mirrored else upright).rot90(quarters, (2, 3))
            )
        ]
        ways.update(same)
        assert len(same) == 1
    assert len(ways) == 8


def test_outside_of_a_small_image_its_edge_goes_on() -> None:
    pixels = image(5, 9)
    tiles = tiled(pixels.numpy())[None]
    zero = torch.zeros((1, 2), dtype=torch.int64)
    found = cut(tiles, torch.tensor([[5, 9]]), zero, 16, zero[:, 0])[0]
    assert torch.equal(found[:, :5, :9], pixels)
    assert torch.equal(found[:, 5:, :9], pixels[:, -1:].expand(3, 11, 9))
    assert (found[:, :, 9:] == found[:, :, 8:9]).all()
