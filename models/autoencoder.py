"""Convolutional autoencoder over images."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, ImageTranslator
from models.parts.optimizers import AdamW
from models.parts.pixels import Unfolding, WholeImages
from models.parts.schedules import OneCycle

FOLD = 4
"""Pixels a side that become one place before anything is computed."""
_COLOUR_COST = 4
"""How many times as high a frequency in colour counts as one in brightness: eyes and pictures are so made."""
_LOUD = 8.0
"""What linearly decoded images are multiplied by, for a head to find them in a few steps."""


class Autoencoder(ImageTranslator):
    """Each patch of an image as a few numbers, and the image from these (Hinton and Salakhutdinov, 2006)."""

    name: Literal["autoencoder"] = "autoencoder"
    code: int = Field(64, ge=1, le=4096, description="Numbers that are kept of each patch.")
    patch: Literal[8, 16, 32, 64] = Field(32, description="Side of a patch in pixels.")
    width: int = Field(96, ge=1, le=2048, description="Channels of the maps on both ways.")

    narrows = True

    def build(self, channels: int) -> Backbone:
        return Bottleneck(channels, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3), "schedule": OneCycle()}


class Bottleneck(WholeImages):
    """Down to codes (B, code, H / patch, W / patch) and up again, by a linear way and one that is not.

    The linear way begins as a cosine transform that keeps low frequencies, nearly the best for pictures
    (Ahmed et al., 1974); the other one learns what it lacks.
    """

    def __init__(self, channels: int, options: Autoencoder) -> None:
        super().__init__()
        patch, code, width = options.patch, options.code, options.width
        self.reach, made = patch, 16
        self.width = made + channels
        self.analysis = nn.Conv2d(channels, code, patch, patch)
        self.synthesis = nn.ConvTranspose2d(code, channels, patch, patch)
        waves = cosines(code, channels, patch)
        for way in (self.analysis, self.synthesis):
            way.weight.data[: len(waves)] = waves
            nn.init.zeros_(way.bias)  # type: ignore[arg-type]  # torch says that there may be none
        halvings = (patch // FOLD).bit_length() - 1
        self.entry = nn.Sequential(nn.Conv2d(channels * FOLD**2, width, 3, padding=1), nn.GELU())
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 2, 2), nn.GELU()) for _ in range(halvings)
        )
        self.encode = nn.Conv2d(width, code, 1)
        nn.init.zeros_(self.encode.weight)
        self.decode = nn.Sequential(nn.Conv2d(code, width, 3, padding=1), nn.GELU())
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.GELU())
            for _ in range(halvings)
        )
        self.exit = Unfolding(width, made, FOLD)

    def blocks(self) -> list[nn.Module]:
        ways_in = [self.analysis, self.entry, *self.downs, self.encode]
        return [*ways_in, self.synthesis, self.decode, *self.ups, self.exit]

    def features(self, images: Tensor) -> Tensor:
        code = self.codes(images)
        maps = code
        for block in [self.decode, *self.ups, self.exit]:
            maps = block(maps)
        return torch.cat([maps, _LOUD * self.synthesis(code)], 1)

    def codes(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to codes (B, code, H / patch, W / patch)."""
        folded = F.pixel_unshuffle(images, FOLD)
        maps = self.entry(folded.contiguous(memory_format=torch.channels_last))
        for block in [*self.downs, self.encode]:
            maps = block(maps)
        found: Tensor = self.analysis(images) + maps
        return found


def cosines(count: int, channels: int, side: int) -> Tensor:
    """The lowest `count` frequencies of patches (count, channels, side, side), orthogonal and of length 1.

    Fewer where a patch does not have so many.
    """
    frequencies = torch.arange(side)
    squares = frequencies[:, None] ** 2 + frequencies**2
    costs = torch.stack([(squares + 1) * (_COLOUR_COST if c else 1) for c in range(channels)])
    chosen = costs.flatten().argsort(stable=True)[:count]
    colour, down, across = chosen // side**2, chosen // side % side, chosen % side
    along_side, along_colour = _waves(side), _waves(channels)
    waves = along_side[down][:, :, None] * along_side[across][:, None, :]
    return along_colour[colour][:, :, None, None] * waves[:, None]


def _waves(length: int) -> Tensor:
    """The cosines of all frequencies (length, length), a row each (DCT-II)."""
    places = torch.arange(length)
    waves = torch.cos(math.pi / length * (places + 0.5) * places[:, None])
    lengths: Tensor = waves.square().sum(1, keepdim=True).sqrt()
    return waves / lengths
