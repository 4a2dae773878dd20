"""Residual network that paints: its norms take scale and shift from numbers that tell a style."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, StyleNetwork
from models.parts.optimizers import AdamW
from models.parts.pixels import filled_up
from models.parts.schedules import OneCycle

_FOLD = 2
_EPSILON = 1e-5


class AdaptiveResidual(StyleNetwork):
    """Residual blocks whose instance norms follow a style (Johnson et al., 2016; Ghiasi et al., 2017)."""

    name: Literal["adaptive-residual"] = "adaptive-residual"
    width: int = Field(64, ge=4, le=1024, multiple_of=4, description="Channels of every block.")
    depth: int = Field(4, ge=1, le=64, description="Residual blocks of two convolutions each.")
    code: int = Field(
        64, ge=1, le=4096, description="Numbers that a style is told by to every norm."
    )

    def build(self, channels: int, numbers: int) -> Backbone:
        return Painter(channels, numbers, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3), "schedule": OneCycle()}


class Painter(Backbone):
    """Down to a quarter of the size, blocks, and up again."""

    def __init__(self, channels: int, numbers: int, options: AdaptiveResidual) -> None:
        super().__init__()
        wide, narrow, code = options.width, options.width // 2, options.code
        self.width, self.reach = options.width // 4, 2 * _FOLD
        self.reader = StyleReader(numbers, code)
        self.entry = Convolution(channels * _FOLD**2, narrow, 1, code)
        self.down = Convolution(narrow, wide, 2, code)
        self.body = nn.ModuleList(Block(wide, code) for _ in range(options.depth))
        self.up = Convolution(wide, narrow, 1, code)
        self.leave = Convolution(narrow, self.width, 1, code)
        self.exit = nn.Conv2d(self.width, self.width, 3, padding=1, padding_mode="replicate")

    def blocks(self) -> list[nn.Module]:
        return [self.reader, self.entry, self.down, *self.body, self.up, self.leave, self.exit]

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return self.painted(filled_up(images, self.reach), numbers)[..., :height, :width]

    def painted(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, width, H, W), where H and W are multiples of `reach`."""
        code = self.reader(numbers)
        folded = F.pixel_unshuffle(images, _FOLD).contiguous(memory_format=torch.channels_last)
        maps = self.down(self.entry(folded, code).relu(), code).relu()
        for block in self.body:
            maps = block(maps, code)
        # Enlarged before it is convolved: the other way round leaves a chequered pattern (Odena et al., 2016).
        maps = self.up(F.interpolate(maps, scale_factor=2.0, mode="nearest"), code).relu()
        maps = self.leave(maps, code).relu()
        found: Tensor = self.exit(F.interpolate(maps, scale_factor=2.0, mode="nearest")).relu()
        return found


class StyleReader(nn.Module):
    """The numbers of a style (B, numbers) to its code (B, code)."""

    def __init__(self, numbers: int, code: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(numbers, elementwise_affine=False),
            nn.Linear(numbers, 2 * code),
            nn.ReLU(),
            nn.Linear(2 * code, code),
        )

    def forward(self, numbers: Tensor) -> Tensor:
        code: Tensor = self.layers(numbers)
        return code


class Convolution(nn.Module):
    """A convolution and an instance norm that a code scales and shifts: (B, inputs, h, w) to (B, width, h, w).

    Means and deviations are those of an image's own maps (Ulyanov et al., 2016; Dumoulin et al., 2017).
    """

    def __init__(self, inputs: int, width: int, stride: int, code: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs, width, 3, stride, padding=1, padding_mode="replicate", bias=False
        )
        self.style = nn.Linear(code, 2 * width)
        nn.init.zeros_(self.style.bias)

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        maps = self.convolution(maps)
        scale, shift = self.style(code)[..., None, None].chunk(2, 1)
        # In whole numbers of bits: squares of halved ones overflow.
        whole = maps.float()
        mean = whole.mean((2, 3), keepdim=True)
        variance = (whole - mean).square().mean((2, 3), keepdim=True)
        normal = (whole - mean) * (variance + _EPSILON).rsqrt()
        found: Tensor = normal * (1 + scale) + shift
        return found.to(maps.dtype)


class Block(nn.Module):
    """Two convolutions and the way around them: (B, width, h, w) to the same."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.first = Convolution(width, width, 1, code)
        self.second = Convolution(width, width, 1, code)

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        found: Tensor = maps + self.second(self.first(maps, code).relu(), code)
        return found
