"""Deep residual network over images that keep their size."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, ImageTranslator
from models.parts.optimizers import AdamW
from models.parts.pixels import Fold, Unfolding, WholeImages
from models.parts.schedules import OneCycle


class EDSR(ImageTranslator):
    """Blocks of convolutions with ways around them, never coarser, without norms (Lim et al., 2017)."""

    name: Literal["edsr"] = "edsr"
    width: int = Field(32, ge=1, le=1024, description="Channels of every map.")
    depth: int = Field(6, ge=1, le=128, description="Residual blocks of two convolutions each.")
    scaling: float = Field(
        1.0, gt=0, le=1, description="What each block adds is multiplied by; 0.1 for wide networks."
    )
    fold: Fold = Field(
        1,
        description="Squares of so many pixels a side become one place with more channels first: a "
        "fraction of the time for nearly the same result (Zhang et al., 2018).",
    )

    def build(self, channels: int) -> Backbone:
        return Residual(channels, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3), "schedule": OneCycle()}


class Residual(WholeImages):
    """An entry, blocks with a way around all of them, and an exit."""

    def __init__(self, channels: int, options: EDSR) -> None:
        super().__init__()
        self.width, self.fold, self.reach = options.width, options.fold, options.fold
        self.entry = nn.Conv2d(channels * self.fold**2, options.width, 3, padding=1)
        self.body = nn.ModuleList(
            Block(options.width, options.scaling) for _ in range(options.depth)
        )
        self.exit = Unfolding(options.width, self.width, self.fold)

    def blocks(self) -> list[nn.Module]:
        return [self.entry, *self.body, self.exit]

    def features(self, images: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(images, self.fold)
        first = self.entry(folded.contiguous(memory_format=torch.channels_last))
        maps = first
        for block in self.body:
            maps = block(maps)
        found: Tensor = self.exit(maps + first)
        return found


class Block(nn.Module):
    """Two convolutions and the way around them: (B, width, h, w) to the same."""

    def __init__(self, width: int, scaling: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.scaling = scaling

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = maps + self.scaling * self.layers(maps)
        return found
