"""Mix transformer: the encoder of SegFormer, with maps at several scales, over images."""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import ImageBackbone, MapBackbone
from models.parts.layers import ChannelNorm, PathDropout
from models.parts.optimizers import AdamW
from models.parts.schedules import OneCycle

SMALLEST = 4
"""Maps narrower than this are not halved any more, nor are keys made fewer than this along a side."""
STEM = ((64, 4), (8, 2))
"""Images with a side of so many pixels or more begin at that stride; smaller ones at every pixel."""
Widths = Annotated[int, Field(ge=1, le=2048)]


class MixTransformer(ImageBackbone):
    """Transformer stages from fine to coarse, whose keys are fewer than their queries (Xie et al., 2021)."""

    name: Literal["mix-transformer"] = "mix-transformer"
    widths: list[Widths] = Field(
        [32, 64, 160],
        min_length=1,
        max_length=6,
        description="Channels of each stage, a multiple of its heads; MiT-B0 has [32, 64, 160, 256].",
    )
    depths: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [2, 2, 2],
        min_length=1,
        max_length=6,
        description="Layers of each stage; MiT-B0 has [2, 2, 2, 2].",
    )
    heads: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 5],
        min_length=1,
        max_length=6,
        description="Attention heads; MiT-B0 has [1, 2, 5, 8].",
    )
    reductions: list[Literal[1, 2, 4, 8, 16]] = Field(
        [8, 4, 2],
        min_length=1,
        max_length=6,
        description="How many queries in each direction share a key; fewer where maps are small. "
        "MiT-B0 has [8, 4, 2, 1].",
    )
    expansion: int = Field(
        4, ge=1, le=16, description="How much wider the feed-forward networks are inside."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of states dropped in training.")
    path_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How often the last layer is left out in training, earlier ones less "
        "(Huang et al., 2016).",
    )

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        lengths = {len(self.widths), len(self.depths), len(self.heads), len(self.reductions)}
        if len(lengths) > 1:
            raise ValueError("widths, depths, heads and reductions need one number for each stage")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of {heads} heads")
        return self

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return Stages(channels, size, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        chosen: dict[str, Any] = {"optimizer": AdamW(learning_rate=1e-3), "schedule": OneCycle()}
        return chosen | ({"epochs": 40} if examples < 5_000 else {})


class Stages(MapBackbone):
    """Stages of overlapping patches and transformer layers, each half the size while there is room."""

    def __init__(self, channels: int, size: tuple[int, int], options: MixTransformer) -> None:
        super().__init__()
        stride = next((stride for side, stride in STEM if min(size) >= side), 1)
        side, reach = min(size), 1
        shares = torch.linspace(0, options.path_dropout, sum(options.depths)).tolist()
        stages, strides = [], []
        for number, width in enumerate(options.widths):
            if number > 0:
                stride = 2 if side >= SMALLEST else 1
            kernel = 7 if number == 0 else 3
            side, reach = -(-side // stride), reach * stride
            reduction = fitting_reduction(options.reductions[number], side)
            layers = [
                Layer(width, options.heads[number], reduction, shares.pop(0), options)
                for _ in range(options.depths[number])
            ]
            patches = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
            stages.append(nn.Sequential(patches, ChannelNorm(width), *layers, ChannelNorm(width)))
            strides.append(reach)
            channels = width
        self.stages = nn.ModuleList(stages)
        self.width, self.widths, self.strides = channels, options.widths, strides

    def blocks(self) -> list[nn.Module]:
        return list(self.stages)

    def maps(self, images: Tensor) -> list[Tensor]:
        found = [images.contiguous(memory_format=torch.channels_last)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]


def fitting_reduction(wanted: int, side: int) -> int:
    """How many queries share a key in each direction on a map of that side: `wanted`, or half as many, and so on."""
    while wanted > 1 and side // wanted < SMALLEST:
        wanted //= 2
    return wanted


class Layer(nn.Module):
    """Attention and a feed-forward network that sees neighbours, each behind a norm."""

    def __init__(
        self, width: int, heads: int, reduction: int, share: float, options: MixTransformer
    ) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = ReducedAttention(width, heads, reduction)
        self.feedforward = MixFeedForward(width, options.expansion * width, options.dropout)
        self.dropout, self.path = nn.Dropout(options.dropout), PathDropout(share)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, width, h, w) to (B, width, h, w)."""
        x: Tensor = maps.permute(0, 2, 3, 1)
        x = x + self.path(self.dropout(self.attention(self.attention_norm(x))))
        x = x + self.path(self.dropout(self.feedforward(self.feedforward_norm(x))))
        return x.permute(0, 3, 1, 2)


class ReducedAttention(nn.Module):
    """Every place looks at every square of `reduction` x `reduction` places (Wang et al., 2021)."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.queries, self.pairs = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.squares: nn.Module = nn.Identity()
        if reduction > 1:
            self.squares = nn.Sequential(
                nn.Conv2d(width, width, reduction, reduction), ChannelNorm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """States (B, h, w, D) to (B, h, w, D)."""
        seen = self._squares(x).flatten(1, 2)
        queries = self.queries(x).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = (
            self.pairs(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        found = F.scaled_dot_product_attention(queries, keys, values)
        merged: Tensor = self.merge(found.transpose(1, 2).flatten(2)).view(x.shape)
        return merged

    def _squares(self, x: Tensor) -> Tensor:
        """States (B, h, w, D) to those that are looked at (B, h / reduction, w / reduction, D)."""
        if self.reduction == 1:
            return x
        below, right = (-side % self.reduction for side in x.shape[1:3])
        maps = F.pad(x, (0, 0, 0, right, 0, below)).permute(0, 3, 1, 2)
        squares: Tensor = self.squares(maps).permute(0, 2, 3, 1)
        return squares


class MixFeedForward(nn.Module):
    """A network at every place with a convolution inside, which tells places apart without embeddings."""

    def __init__(self, width: int, inside: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, inside), nn.Linear(inside, width)
        self.around = nn.Conv2d(inside, inside, 3, padding=1, groups=inside)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """States (B, h, w, D) to (B, h, w, D)."""
        wide = self.around(self.widen(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        narrow: Tensor = self.narrow(self.dropout(F.gelu(wide)))
        return narrow
