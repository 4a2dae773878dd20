"""Vision transformer over images."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import ImageBackbone, MapBackbone
from models.parts.layers import ChannelNorm
from models.parts.optimizers import AdamW
from models.parts.schedules import Cosine
from models.parts.transformer import TransformerLayer, sinusoids

PATCHES = ((128, 16), (48, 8), (16, 4), (8, 2))
"""The sides of patches for images whose shorter side has so many pixels or more; 1 for the smallest."""


class ViT(ImageBackbone):
    """A transformer over the patches of an image (Dosovitskiy et al., 2021)."""

    name: Literal["vit"] = "vit"
    patch: Literal[1, 2, 4, 8, 16, 32] | None = Field(
        None,
        description="Side of the patches in pixels; left out, what suits the size of the images.",
    )
    width: int = Field(
        128, ge=4, le=4096, multiple_of=4, description="Width of the states; a multiple of `heads`."
    )
    layers: int = Field(4, ge=1, le=48, description="Transformer layers on top of each other.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads of each layer.")
    feedforward: int = Field(
        256, ge=1, le=16_384, description="Width of the hidden layer of the feed-forward networks."
    )
    stem: Literal["convolutions", "patches"] = Field(
        "convolutions",
        description="What makes states of pixels: convolutions that halve the image until a pixel is a "
        "patch (Xiao et al., 2021), which learn from fewer images, or one linear map of each patch.",
    )
    positions: Literal["sinusoid", "learned"] = Field(
        "sinusoid",
        description="How patches are told their places; learned ones are interpolated for images of "
        "another size.",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of states and attention dropped in training."
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return PatchTransformer(channels, size, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
        }
        return chosen | ({"epochs": 40} if examples < 5_000 else {})


class PatchTransformer(MapBackbone):
    """Patches and their places, transformer layers, and a norm; one map, a place for each patch."""

    def __init__(self, channels: int, size: tuple[int, int], options: ViT) -> None:
        super().__init__()
        width, patch = options.width, options.patch or fitting_patch(min(size))
        grid = -(-size[0] // patch), -(-size[1] // patch)
        convolutional = options.stem == "convolutions" and patch > 1
        pixels = convolutions(channels, width, patch) if convolutional else None
        self.patches = Patches(pixels or nn.Conv2d(channels, width, patch, patch), grid, options)
        self.layers = nn.ModuleList(
            TransformerLayer(width, options.heads, options.feedforward, options.dropout)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.patch, self.width = patch, width
        self.widths, self.strides = [width], [patch]

    def blocks(self) -> list[nn.Module]:
        return [self.patches, *self.layers, self.norm]

    def maps(self, images: Tensor) -> list[Tensor]:
        placed = self.patches(filled_up(images, self.patch))
        states = placed.flatten(2).transpose(1, 2)
        for layer in self.layers:
            states = layer(states)
        return [self.norm(states).transpose(1, 2).unflatten(2, placed.shape[2:])]


class Patches(nn.Module):
    """States of the patches of an image, with their places added."""

    def __init__(self, pixels: nn.Module, grid: tuple[int, int], options: ViT) -> None:
        super().__init__()
        self.pixels, self.dropout = pixels, nn.Dropout(options.dropout)
        self.places: Tensor | None = None
        if options.positions == "learned":
            self.places = nn.Parameter(0.02 * torch.randn(1, options.width, *grid))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to maps (B, width, h, w)."""
        states = self.pixels(images)
        placed: Tensor = self.dropout(states + self._places(states).to(states.dtype))
        return placed

    def _places(self, states: Tensor) -> Tensor:
        """What is added for the places of such maps (1, width, h, w)."""
        _, width, *grid = states.shape
        if self.places is None:
            return plane_of_sinusoids(grid[0], grid[1], width).to(states.device)
        if list(self.places.shape[2:]) == grid:
            return self.places
        return F.interpolate(self.places, grid, mode="bilinear", align_corners=False)


def fitting_patch(side: int) -> int:
    """The side of patches for images whose shorter side has so many pixels."""
    return next((patch for least, patch in PATCHES if side >= least), 1)


def convolutions(channels: int, width: int, patch: int) -> nn.Sequential:
    """Images (B, channels, H, W) to maps (B, width, H / patch, W / patch), halved by each convolution."""
    halvings, layers = patch.bit_length() - 1, []
    for left in reversed(range(halvings)):
        wide = max(16, width >> left)
        layers += [
            nn.Conv2d(channels, wide, 3, 2, 1),
            ChannelNorm(wide),
            nn.ReLU(),
        ]
        channels = wide
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def filled_up(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) with zeros to the right and below, so that patches come out even."""
    height, width = images.shape[2:]
    below, right = -height % patch, -width % patch
    return F.pad(images, (0, right, 0, below)) if below or right else images


def plane_of_sinusoids(height: int, width: int, channels: int) -> Tensor:
    """Places (1, channels, height, width): half of the channels tell the row, the others the column."""
    half = channels // 2
    rows = sinusoids(height, half).T[:, :, None].expand(half, height, width)
    columns = sinusoids(width, half).T[:, None].expand(half, height, width)
    return torch.cat([rows, columns])[None]
