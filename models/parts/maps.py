"""Stages of convolutions that make maps coarser and finer by halves, for images of any side."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.unet import norm

COARSEST = 4
"""Sides are halved until they would be less than this, or are odd."""
MOST = 4
"""How many times as wide as the finest maps the coarsest ones may be."""


def widths_of(width: int, side: int) -> list[int]:
    """Channels of the maps from fine to coarse: as many as there are halvings, and one."""
    found, times = [width], 1
    while side % 2 == 0 and side // 2 >= COARSEST:
        side, times = side // 2, min(2 * times, MOST)
        found.append(width * times)
    return found


def side_of(side: int, widths: Sequence[int]) -> int:
    """Side of the coarsest maps."""
    return int(side // 2 ** (len(widths) - 1))


def narrowed(channels: int, widths: Sequence[int]) -> "Chain":
    """Images (B, channels, H, W) to the coarsest maps, one stage after the other."""
    inputs = [channels, *widths]
    return Chain(
        nn.Sequential(
            nn.Conv2d(before, width, 3, stride=1 if place == 0 else 2, padding=1),
            norm(width),
            nn.SiLU(),
        )
        for place, (before, width) in enumerate(zip(inputs, widths, strict=False))
    )


def finer(widths: Sequence[int], channels: int) -> "Chain":
    """The coarsest maps to (B, channels, H, W)."""
    stages = [Finer(coarse, fine) for fine, coarse in pairwise(widths)][::-1]
    return Chain([*stages, nn.Conv2d(widths[0], channels, 3, padding=1)])


class Chain(nn.ModuleList):
    """Parts, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return x


class Finer(nn.Module):
    """Maps of twice the side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(inputs), nn.SiLU(), nn.Conv2d(inputs, width, 3, padding=1), norm(width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        self.around = nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, width, 2 h, 2 w)."""
        x = F.interpolate(x, scale_factor=2.0)
        y: Tensor = self.layers(x) + self.around(x)
        return y
