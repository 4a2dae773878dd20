"""Residual network over images."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import ImageBackbone, MapBackbone
from models.parts.layers import Norm, map_norm
from models.parts.optimizers import AdamW
from models.parts.schedules import OneCycle

SMALL_IMAGE = 64
"""Images with a side below this keep their size in the stem."""
SMALLEST = 4
"""Feature maps narrower than this are not halved any more."""


class ResNet(ImageBackbone):
    """Blocks of convolutions with ways around them (He et al., 2016)."""

    name: Literal["resnet"] = "resnet"
    depths: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [2, 2, 2],
        min_length=1,
        max_length=6,
        description="Blocks of each stage; with `width` 64, [2, 2, 2, 2] is ResNet-18 and "
        "[3, 4, 6, 3] is ResNet-34, or ResNet-50 with `bottleneck`.",
    )
    width: int = Field(
        32,
        ge=1,
        le=512,
        description="Channels of the first stage; each further stage doubles them.",
    )
    bottleneck: bool = Field(
        False,
        description="Blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions with 4 times the channels.",
    )
    norm: Norm = Field("batch", description="Normalisation behind each convolution.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of channels dropped in training, after each stage."
    )

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return Residual(channels, size, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {"optimizer": AdamW(learning_rate=2e-3), "schedule": OneCycle()}
        return chosen | ({"epochs": 20} if examples < 5_000 else {})


def convolution(inputs: int, width: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution and its norm: (B, inputs, h, w) to (B, width, h / stride, w / stride)."""
    conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, map_norm(norm, width))


class Block(nn.Module):
    """A few convolutions and the way around them."""

    def __init__(self, inputs: int, width: int, stride: int, options: ResNet) -> None:
        super().__init__()
        norm = options.norm
        self.width = 4 * width if options.bottleneck else width
        if options.bottleneck:
            layers = [
                convolution(inputs, width, 1, 1, norm),
                nn.ReLU(),
                convolution(width, width, 3, stride, norm),
                nn.ReLU(),
                convolution(width, self.width, 1, 1, norm),
            ]
        else:
            layers = [
                convolution(inputs, width, 3, stride, norm),
                nn.ReLU(),
                convolution(width, width, 3, 1, norm),
            ]
        self.layers = nn.Sequential(*layers)
        same = inputs == self.width and stride == 1
        self.around = nn.Identity() if same else convolution(inputs, self.width, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, inputs, h, w) to (B, width, h / stride, w / stride)."""
        y: Tensor = self.layers(x) + self.around(x)
        return y.relu()


class Residual(MapBackbone):
    """A stem and stages of blocks."""

    def __init__(self, channels: int, size: tuple[int, int], options: ResNet) -> None:
        super().__init__()
        small = min(size) < SMALL_IMAGE
        self.stem = stem(channels, options.width, small, options.norm)
        reach = 1 if small else 4
        side = min(size) // reach
        inputs, stages, widths, strides = options.width, [], [], []
        for number, depth in enumerate(options.depths):
            stride = 2 if number > 0 and side >= SMALLEST else 1
            blocks = [Block(inputs, options.width * 2**number, stride, options)]
            inputs, side, reach = blocks[0].width, side // stride, reach * stride
            widths.append(inputs)
            strides.append(reach)
            blocks += [
                Block(inputs, options.width * 2**number, 1, options) for _ in range(depth - 1)
            ]
            stages.append(nn.Sequential(*blocks, nn.Dropout2d(options.dropout)))
        self.stages = nn.ModuleList(stages)
        self.width, self.widths, self.strides = inputs, widths, strides

    def blocks(self) -> list[nn.Module]:
        return [self.stem, *self.stages]

    def maps(self, images: Tensor) -> list[Tensor]:
        found = [self.stem(images.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]


def stem(channels: int, width: int, small: bool, norm: Norm) -> nn.Sequential:
    """Images (B, channels, H, W) to feature maps (B, width, h, w), a quarter of their size unless small."""
    if small:
        return nn.Sequential(convolution(channels, width, 3, 1, norm), nn.ReLU())
    return nn.Sequential(
        convolution(channels, width, 7, 2, norm), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    )
