"""A U-Net (Ronneberger et al., 2015) that is told how noisy its image is, and what it shows (Ho et al., 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone

SMALLEST = 4
"""Maps narrower than this are not halved any more."""
GROUP = 8
"""Channels that are normalised together."""
FREQUENCIES = 16
MOST_PLACES = 256
"""Maps of no more places than this attend to themselves at the bottom."""


class Denoiser(Backbone):
    """Maps at ever coarser scales and back, with ways across."""

    def __init__(
        self,
        channels: int,
        side: int,
        widths: Sequence[int],
        depth: int,
        patch: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch, self.width = patch, 4 * widths[0]
        self.level = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, self.width), nn.SiLU(), nn.Linear(self.width, self.width)
        )
        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        place, inputs, crossing = side // patch, widths[0], [widths[0]]
        down: list[nn.Module] = []
        halved: list[bool] = []
        for number, width in enumerate(widths):
            halves = number > 0 and place >= 2 * SMALLEST and place % 2 == 0
            place //= 2 if halves else 1
            for count in range(depth):
                down.append(Block(inputs, width, self.width, dropout))
                halved.append(halves and count == 0)
                inputs = width
                crossing.append(width)
        self.down, self.halved = nn.ModuleList(down), halved
        attends = place**2 <= MOST_PLACES
        self.middle = nn.ModuleList(
            [
                Block(inputs, inputs, self.width, dropout),
                Attention(inputs) if attends else nn.Identity(),
            ]
        )
        up: list[nn.Module] = []
        for width in reversed([*crossing[1:]]):
            up.append(Block(inputs + width, width, self.width, dropout))
            inputs = width
        self.up = nn.ModuleList(up)
        self.out = nn.Sequential(
            norm(inputs + widths[0]),
            nn.SiLU(),
            faint(inputs + widths[0], channels * patch**2),
        )

    def forward(self, images: Tensor, levels: Tensor, meanings: Tensor) -> Tensor:
        """Images (B, C, H, W), how noisy they are (B,) in [0, 1] and what they show (B, width) to (B, C, H, W)."""
        context = F.silu(self.level(waves(levels)) + meanings)
        x = self.stem(F.pixel_unshuffle(images, self.patch))
        crossing = [x]
        for block, halves in zip(self.down, self.halved, strict=True):
            x = block(F.avg_pool2d(x, 2) if halves else x, context)
            crossing.append(x)
        block, attention = self.middle
        x = attention(block(x, context))
        for block in self.up:
            other = crossing.pop()
            x = block(torch.cat([_grown(x, other), other], 1), context)
        x = self.out(torch.cat([_grown(x, crossing[0]), crossing[0]], 1))
        return F.pixel_shuffle(x, self.patch)

    def blocks(self) -> list[nn.Module]:
        begin = nn.ModuleList([self.level, self.stem])
        return [begin, *self.down, self.middle, *self.up, self.out]


def _grown(x: Tensor, other: Tensor) -> Tensor:
    """Maps as large as another's."""
    return x if x.shape[2:] == other.shape[2:] else F.interpolate(x, scale_factor=2.0)


def waves(levels: Tensor) -> Tensor:
    """Numbers (B,) in [0, 1] as sines and cosines (B, 2 * FREQUENCIES) of many lengths."""
    lengths = torch.exp(
        torch.arange(FREQUENCIES, device=levels.device) * (math.log(1_000) / (FREQUENCIES - 1))
    )
    angles = levels[:, None] * lengths
    return torch.cat([angles.sin(), angles.cos()], 1)


def norm(width: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(width, max(1, width // GROUP)), width)


def faint(inputs: int, width: int) -> nn.Conv2d:
    """A convolution that begins with little to say."""
    found = nn.Conv2d(inputs, width, 3, padding=1)
    with torch.no_grad():
        found.weight.mul_(0.1)
    return found


class Block(nn.Module):
    """Two convolutions and the way around them; the context scales and shifts what is between."""

    def __init__(self, inputs: int, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(
            norm(inputs), nn.SiLU(), nn.Conv2d(inputs, width, 3, padding=1), norm(width)
        )
        self.told = nn.Linear(context, 2 * width)
        self.after = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), faint(width, width))
        self.around = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) and context (B, C) to (B, width, h, w)."""
        scale, shift = self.told(context)[:, :, None, None].chunk(2, 1)
        y: Tensor = self.after(self.before(x) * (1 + scale) + shift) + self.around(x)
        return y


class Attention(nn.Module):
    """Every place of the maps looks at all others, by one head (Vaswani et al., 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.asked = nn.Conv2d(width, 3 * width, 1)
        self.told = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.asked(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        found = F.scaled_dot_product_attention(query, key, value)
        told: Tensor = x + self.told(found.transpose(1, 2).reshape(x.shape))
        return told
