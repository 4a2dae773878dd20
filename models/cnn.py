"""Convolutional network over images."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import ImageBackbone, MapBackbone
from models.parts.layers import RISING, Activation, Norm, activation, map_norm
from models.parts.optimizers import AdamW
from models.parts.schedules import OneCycle

SMALLEST = 4
"""Feature maps narrower than this are not pooled any more."""


class CNN(ImageBackbone):
    """Stages of convolution, normalisation, nonlinearity and pooling (LeCun et al., 1998)."""

    name: Literal["cnn"] = "cnn"
    channels: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        [32, 64, 128],
        min_length=1,
        max_length=12,
        description="Channels of each stage; their number is the depth.",
    )
    convolutions: int = Field(1, ge=1, le=8, description="Convolutions of each stage.")
    kernel: Literal[1, 3, 5, 7, 9, 11] = Field(3, description="Side of the filters in pixels.")
    norm: Norm = Field("batch", description="Normalisation in front of each nonlinearity.")
    activation: Activation = Field("relu", description="Nonlinearity of the convolutions.")
    pooling: Literal["max", "mean"] = Field(
        "max", description="What is kept of every 2 x 2 pixels at a stage's end."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of channels dropped in training, after each stage."
    )

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return Stages(channels, size, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {"optimizer": AdamW(learning_rate=3e-3), "schedule": OneCycle()}
        return chosen | ({"epochs": 30} if examples < 5_000 else {})


class Stages(MapBackbone):
    """Stages of convolutions, each half the size of the one before while there is room."""

    def __init__(self, channels: int, size: tuple[int, int], options: CNN) -> None:
        super().__init__()
        stages, strides, side, stride = [], [], min(size), 1
        for width in options.channels:
            pools = side >= SMALLEST
            stages.append(stage(channels, width, pools, options))
            channels, side = width, side // 2 if pools else side
            stride = 2 * stride if pools else stride
            strides.append(stride)
        self.stages = nn.ModuleList(stages)
        self.width, self.widths, self.strides = channels, options.channels, strides

    def blocks(self) -> list[nn.Module]:
        return list(self.stages)

    def maps(self, images: Tensor) -> list[Tensor]:
        found = [images.contiguous(memory_format=torch.channels_last)]
        for part in self.stages:
            found.append(part(found[-1]))
        return found[1:]


def stage(inputs: int, width: int, pools: bool, options: CNN) -> nn.Sequential:
    """Feature maps (B, inputs, h, w) to (B, width, h, w), or half of h and w."""
    layers: list[nn.Module] = []
    for channels in [inputs, *[width] * (options.convolutions - 1)]:
        layers += [
            nn.Conv2d(channels, width, options.kernel, padding="same", bias=options.norm == "none"),
            map_norm(options.norm, width),
            activation(options.activation),
        ]
    if pools and options.pooling == "mean":
        layers.append(nn.AvgPool2d(2))
    elif pools:
        # The largest of four stays the largest under what rises; a quarter is left to compute.
        place = -1 if options.activation in RISING else len(layers)
        layers.insert(place, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Dropout2d(options.dropout))
