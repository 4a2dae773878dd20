"""U-Net over images."""

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, ImageTranslator
from models.parts.layers import Norm, map_norm
from models.parts.optimizers import AdamW
from models.parts.pixels import Fold, Unfolding, WholeImages
from models.parts.schedules import OneCycle


class UNet(ImageTranslator):
    """Down to coarse maps and up again, with ways across at every scale (Ronneberger et al., 2015)."""

    name: Literal["unet"] = "unet"
    widths: list[Annotated[int, Field(ge=1, le=2048)]] = Field(
        [32, 64, 128],
        min_length=1,
        max_length=8,
        description="Channels at each scale, the finest first; each scale halves the one before.",
    )
    convolutions: int = Field(2, ge=1, le=8, description="Convolutions at each scale, both ways.")
    fold: Fold = Field(
        2,
        description="Squares of so many pixels a side become one place with more channels first: a "
        "fraction of the time for nearly the same result (Zhang et al., 2018).",
    )
    norm: Norm = Field("batch", description="Normalisation in front of each nonlinearity.")

    def build(self, channels: int) -> Backbone:
        return DownAndUp(channels, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=4e-3), "schedule": OneCycle()}


class DownAndUp(WholeImages):
    """The way down, the way up, and what brings folded pixels back to their places."""

    def __init__(self, channels: int, options: UNet) -> None:
        super().__init__()
        widths, self.fold = options.widths, options.fold
        self.reach = self.fold * 2 ** (len(widths) - 1)
        entering = [channels * self.fold**2, *widths]
        self.downs = nn.ModuleList(
            Down(inputs, width, halves=scale > 0, options=options)
            for scale, (inputs, width) in enumerate(zip(entering, widths, strict=False))
        )
        rising = widths[::-1]
        self.ups = nn.ModuleList(Up(coarse, fine, options) for coarse, fine in pairwise(rising))
        self.width = max(16, widths[0] // 2)
        # What is finest of all goes across, too.
        self.exit = Unfolding(widths[0] + entering[0], self.width, self.fold)

    def blocks(self) -> list[nn.Module]:
        return [*self.downs, *self.ups, self.exit]

    def features(self, images: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(images, self.fold).contiguous(memory_format=torch.channels_last)
        maps, across = folded, []
        for down in self.downs:
            maps = down(maps)
            across.append(maps)
        for up, fine in zip(self.ups, across[-2::-1], strict=True):
            maps = up(maps, fine)
        found: Tensor = self.exit(torch.cat([maps, folded], 1))
        return found


class Down(nn.Module):
    """Maps (B, inputs, h, w) to (B, width, h, w), or half of h and w."""

    def __init__(self, inputs: int, width: int, *, halves: bool, options: UNet) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if halves else nn.Identity()
        self.layers = convolutions(inputs, width, options)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.layers(self.pool(maps))
        return found


class Up(nn.Module):
    """Coarse maps (B, coarse, h, w) and fine ones (B, fine, 2 h, 2 w) to (B, fine, 2 h, 2 w)."""

    def __init__(self, coarse: int, fine: int, options: UNet) -> None:
        super().__init__()
        self.rise = nn.ConvTranspose2d(coarse, fine, 2, 2)
        self.layers = convolutions(2 * fine, fine, options)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        found: Tensor = self.layers(torch.cat([self.rise(coarse), fine], 1))
        return found


def convolutions(inputs: int, width: int, options: UNet) -> nn.Sequential:
    """Maps (B, inputs, h, w) to (B, width, h, w)."""
    layers: list[nn.Module] = []
    for channels in [inputs, *[width] * (options.convolutions - 1)]:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=options.norm == "none"),
            map_norm(options.norm, width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
