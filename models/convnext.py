"""ConvNeXt: a convolutional network with the layout of a transformer, over images."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import ImageBackbone, MapBackbone
from models.parts.layers import ChannelNorm, PathDropout
from models.parts.optimizers import AdamW
from models.parts.schedules import OneCycle

SMALLEST = 4
"""Feature maps narrower than this are not halved any more."""
STEM = ((64, 4), (16, 2))
"""Images with a side of so many pixels or more are cut into patches of that side; smaller ones stay whole."""


class ConvNeXt(ImageBackbone):
    """Wide depthwise convolutions, each with a small network at every place (Liu et al., 2022)."""

    name: Literal["convnext"] = "convnext"
    depths: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [2, 2, 4],
        min_length=1,
        max_length=6,
        description="Blocks of each stage; with `width` 96, [3, 3, 9, 3] is ConvNeXt-T and "
        "[3, 3, 27, 3] is ConvNeXt-S.",
    )
    width: int = Field(
        40,
        ge=1,
        le=512,
        description="Channels of the first stage; each further stage doubles them.",
    )
    kernel: Literal[3, 5, 7, 9, 11] = Field(
        7, description="Side of the depthwise filters, in places of the map."
    )
    scale: float = Field(
        0.1, gt=0, le=1, description="How much of each block is added at first; learned from there."
    )
    path_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How often the last block is left out in training, earlier ones less "
        "(Huang et al., 2016).",
    )

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return Stages(channels, size, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {"optimizer": AdamW(learning_rate=2e-3), "schedule": OneCycle()}
        return chosen | ({"epochs": 30} if examples < 5_000 else {})


class Stages(MapBackbone):
    """Patches, and stages of blocks, each half the size of the one before while there is room."""

    def __init__(self, channels: int, size: tuple[int, int], options: ConvNeXt) -> None:
        super().__init__()
        stride = next((stride for side, stride in STEM if min(size) >= side), 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, options.width, stride, stride),
            ChannelNorm(options.width),
        )
        side, inputs = min(size) // stride, options.width
        shares = torch.linspace(0, options.path_dropout, sum(options.depths)).tolist()
        stages, widths, strides = [], [], []
        for number, depth in enumerate(options.depths):
            width, layers = options.width * 2**number, list[nn.Module]()
            halves = number > 0 and side >= SMALLEST
            if number > 0:
                kernel = 2 if halves else 1
                layers.append(nn.Conv2d(inputs, width, kernel, kernel))
            layers += [Block(width, shares.pop(0), options) for _ in range(depth)]
            stages.append(nn.Sequential(*layers, ChannelNorm(width)))
            inputs, side, stride = width, side // 2 if halves else side, stride * (1 + halves)
            widths.append(width)
            strides.append(stride)
        self.stages = nn.ModuleList(stages)
        self.width, self.widths, self.strides = inputs, widths, strides

    def blocks(self) -> list[nn.Module]:
        return [self.stem, *self.stages]

    def maps(self, images: Tensor) -> list[Tensor]:
        found = [self.stem(images.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]


class Block(nn.Module):
    """A depthwise convolution, a network at every place, and the way around them."""

    def __init__(self, width: int, dropout: float, options: ConvNeXt) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, options.kernel, padding="same", groups=width)
        self.places = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), options.scale))
        self.dropout = PathDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, width, h, w) to (B, width, h, w)."""
        found = self.places(self.around(x).permute(0, 2, 3, 1)) * self.scale
        y: Tensor = x + self.dropout(found.permute(0, 3, 1, 2))
        return y
