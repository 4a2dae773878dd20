"""From feature maps to an answer for every pixel: decoders a request can name, and losses of pixels."""

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MapBackbone
from models.parts.layers import Norm, map_norm
from models.parts.options import Option, Plain

IGNORED = 255
"""The class of pixels that nothing is known of."""


class PixelDecoder(nn.Module):
    """From images and the maps of their backbone to answers for pixels; `answer` is its last layer."""

    answer: nn.Conv2d


class Decoder(Option):
    """How feature maps become answers for pixels."""

    @abstractmethod
    def build(self, backbone: MapBackbone, channels: int, outputs: int) -> PixelDecoder:
        """From images (B, channels, H, W) and a list of their maps to (B, outputs, h, w), coarser than those or not."""


class UNet(Decoder):
    """From the coarsest map to ever finer ones, each joined on the way (Ronneberger et al., 2015)."""

    name: Literal["unet"] = "unet"
    width: int = Field(
        32, ge=1, le=1024, description="Channels of the finest maps; coarser ones have more."
    )
    stride: Literal[1, 2, 4] = Field(
        2, description="Pixels to a side of a place of the finest maps: 1 looks at every pixel."
    )
    norm: Norm = Field("batch", description="Normalisation behind each convolution.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of channels dropped in training, before the answer."
    )

    def build(self, backbone: MapBackbone, channels: int, outputs: int) -> PixelDecoder:
        return Rising(backbone, channels, outputs, self)


class AllMLP(Decoder):
    """All maps side by side, and layers that look at one place at a time (Xie et al., 2021)."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(64, ge=1, le=4096, description="Channels that each map is brought to.")
    norm: Norm = Field("batch", description="Normalisation behind the maps' mixture.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of channels dropped in training, before the answer."
    )

    def build(self, backbone: MapBackbone, channels: int, outputs: int) -> PixelDecoder:
        return Mixture(backbone, outputs, self)


def convolution(
    inputs: int, width: int, norm: Norm, *, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """Maps (B, inputs, h, w) to (B, width, h / stride, w / stride)."""
    conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, map_norm(norm, width), nn.ReLU())


class Rising(PixelDecoder):
    """A U-Net's decoder, and convolutions over the pixels themselves for what is finer than the backbone's maps."""

    def __init__(self, backbone: MapBackbone, channels: int, outputs: int, options: UNet) -> None:
        super().__init__()
        stride, norm = options.stride, options.norm
        self.first = next(
            (n for n, s in enumerate(backbone.strides) if s >= stride), len(backbone.strides) - 1
        )
        widths, strides = list(backbone.widths[self.first :]), list(backbone.strides[self.first :])
        stems, finest, inputs = [], strides[0], channels
        reach = 1 if stride == 1 else 2
        while reach < finest:
            stems.append(
                convolution(inputs, max(8, options.width // 2), norm, stride=1 if reach == 1 else 2)
            )
            inputs = max(8, options.width // 2)
            if reach >= stride:
                widths.insert(len(stems) - 1, inputs)
                strides.insert(len(stems) - 1, reach)
            reach *= 2
        self.stems = nn.ModuleList(stems)
        x, steps = widths[-1], []
        for width, at in zip(widths[-2::-1], strides[-2::-1], strict=True):
            wide = min(max(width, options.width), options.width * at // strides[0])
            steps.append(convolution(x + width, wide, norm))
            x = wide
        self.steps = nn.ModuleList(steps)
        self.dropout = nn.Dropout2d(options.dropout)
        self.answer = nn.Conv2d(x, outputs, 1)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        x, fine = images.contiguous(memory_format=torch.channels_last), []
        for stem in self.stems:
            x = stem(x)
            fine.append(x)
        joined = [*fine, *maps[self.first :]][-len(self.steps) - 1 :]
        x = joined[-1]
        for step, skip in zip(self.steps, joined[-2::-1], strict=True):
            x = step(torch.cat([spread(x, skip), skip], 1))
        answers: Tensor = self.answer(self.dropout(x))
        return answers


class Mixture(PixelDecoder):
    """SegFormer's decoder."""

    def __init__(self, backbone: MapBackbone, outputs: int, options: AllMLP) -> None:
        super().__init__()
        width = options.width
        self.layers = nn.ModuleList(nn.Conv2d(w, width, 1) for w in backbone.widths)
        self.mix = convolution(width * len(self.layers), width, options.norm, kernel=1)
        self.dropout = nn.Dropout2d(options.dropout)
        self.answer = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        found = [layer(map) for layer, map in zip(self.layers, maps, strict=True)]
        mixed = self.mix(torch.cat([spread(x, found[0]) for x in found], 1))
        answers: Tensor = self.answer(self.dropout(mixed))
        return answers


def spread(coarse: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, h, w) brought to the height and width of others (B, D, H, W), smoothly."""
    if coarse.shape[2:] == like.shape[2:]:
        return coarse
    return F.interpolate(coarse, like.shape[2:], mode="bilinear", align_corners=False)


class PixelLoss(Plain):
    """Cross-entropy of every pixel, and the overlap of every class."""

    class_weights: Literal["none", "balanced", "logarithmic"] = Field(
        "none",
        description="`balanced` weighs each class by the inverse of its share of the pixels, `logarithmic` "
        "more gently, by the inverse of the logarithm of its share and 1.02 (Paszke et al., 2016).",
    )
    dice: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Weight of the Dice loss beside it (Milletari et al., 2016): 1 less how well each "
        "class that is in an image covers its place there, whatever its size.",
    )

    def build(self, counts: list[int]) -> nn.Module:
        """The criterion for classes that have `counts` pixels in the train split."""
        return PixelCriterion(self._weights(torch.tensor(counts).double()), self.dice)

    def _weights(self, counts: Tensor) -> Tensor:
        shares = counts / counts.sum().clamp(min=1)
        match self.class_weights:
            case "none":
                return torch.ones(len(counts))
            case "balanced":
                weights = 1 / (len(counts) * shares).clamp(min=1e-4)
            case _:
                weights = 1 / torch.log(1.02 + shares)
        return (weights / (weights * shares).sum().clamp(min=1e-9)).float()


class PixelCriterion(nn.Module):
    """Scores (B, K, H, W) and classes (B, H, W) uint8 to a loss (): a mean over images, of the pixels known of each."""

    weights: Tensor

    def __init__(self, weights: Tensor, dice: float) -> None:
        super().__init__()
        self.dice = dice
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, scores: Tensor, classes: Tensor) -> Tensor:
        known = classes != IGNORED
        places = torch.where(known, classes, 0).long()
        weights = self.weights[places] * known
        logs = scores.log_softmax(1)
        wrong = -logs.gather(1, places[:, None]).squeeze(1)
        loss = (wrong * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-6)
        if self.dice:
            loss = loss + self.dice * self._apart(logs.exp(), places, known)
        return loss.mean()

    def _apart(self, shares: Tensor, places: Tensor, known: Tensor) -> Tensor:
        """1 less the Dice coefficient (B,) of the classes that are in each image."""
        every = torch.arange(shares.shape[1], device=shares.device).view(1, -1, 1, 1)
        truth = ((places[:, None] == every) & known[:, None]).to(shares.dtype)
        there = truth.sum((2, 3))
        common = torch.einsum("bkhw,bkhw->bk", shares, truth)
        given = torch.einsum("bkhw,bhw->bk", shares, known.to(shares.dtype))
        overlap = (2 * common + 1) / (given + there + 1)
        present = there > 0
        return ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)
