"""Diffusion model of images: learns to take noise away, and makes images from nothing but noise."""

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.base import Batch, ImageGenerator
from models.parts.generating import ImageMaker
from models.parts.optimizers import AdamW
from models.parts.precision import autocast
from models.parts.schedules import Cosine
from models.parts.unet import Denoiser

LARGE = 16
"""Images with a longer side are looked at in patches of 2 x 2 pixels."""


class DDPM(ImageGenerator):
    """Diffusion model (Ho et al., 2020), sampled in few steps (DDIM; Song et al., 2021)."""

    name: Literal["ddpm"] = "ddpm"
    width: int = Field(
        32, ge=8, le=512, multiple_of=8, description="Channels of the finest maps of the U-Net."
    )
    multipliers: list[Annotated[int, Field(ge=1, le=16)]] = Field(
        [1, 2, 2],
        min_length=1,
        max_length=6,
        description="How many times as wide each stage is; each is half as fine as the one before.",
    )
    depth: int = Field(1, ge=1, le=8, description="Residual blocks of each stage, on either way.")
    patch: Literal[1, 2, 4] | None = Field(
        None,
        description="Side of the squares of pixels that are one place of the finest maps; null: 1 for sides of "
        "up to 16 pixels, else 2.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of channels' places dropped out.")
    label_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of examples that are learned from without their label, which `guidance` needs "
        "(Ho and Salimans, 2021).",
    )
    average: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="How slowly the averaged weights that images are made with follow.",
    )

    def build(self, channels: int, side: int, classes: int) -> "Diffusion":
        return Diffusion(channels, side, classes, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3), "schedule": Cosine(warmup=0.05)}


class Diffusion(ImageMaker):
    """Learns from an image and noise, mixed, what of the one and of the other to expect there."""

    def __init__(self, channels: int, side: int, classes: int, options: DDPM) -> None:
        patch = options.patch or (1 if side <= LARGE else 2)
        widths = [options.width * times for times in options.multipliers]
        network = Denoiser(channels, side, widths, options.depth, patch, options.dropout)
        super().__init__(network, (channels, side, side), classes, options.average)
        self.label_dropout = options.label_dropout

    def forward(self, *inputs: Tensor) -> Tensor:
        """What noisy images (B, C, H, W) at levels (B,) of classes (B,) hide: (B, C, H, W)."""
        noisy, levels, classes = inputs
        found: Tensor = self.backbone(noisy, levels, self.head(classes))
        return found

    def loss(self, batch: Batch) -> Tensor:
        """The squared error of the velocity (Salimans and Ho, 2022), which says as much of noise as of the image."""
        images, classes = self.seen(batch), batch.inputs[0][:, 0]
        size, device = len(images), images.device
        if self.classes and self.label_dropout:
            left_out = torch.rand(size, device=device) < self.label_dropout
            classes = classes.masked_fill(left_out, self.classes)
        # Spread evenly over a batch, the levels make losses of batches vary less (Kingma et al., 2021).
        levels = (torch.rand((), device=device) + torch.arange(size, device=device) / size) % 1
        hidden = torch.randn_like(images)
        of_image, of_noise = shares(levels)
        noisy = of_image * images + of_noise * hidden
        with autocast(self.precision, device):
            found = (self.kernels or self)(noisy, levels, classes)
        loss: Tensor = self.criterion(found.float(), of_image * hidden - of_noise * images)
        return loss

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.shape

    def make(self, start: Tensor, classes: Tensor, steps: int, guidance: Tensor) -> Tensor:
        """Deterministic steps from noise to an image (Song et al., 2021)."""
        noisy, levels = start, torch.linspace(1, 0, steps + 1).tolist()
        image = noisy
        for level, following in pairwise(levels):
            of_image, of_noise = _share(level)
            velocity = self._velocity(noisy, level, classes, guidance)
            image = (of_image * noisy - of_noise * velocity).clamp(-1, 1)
            hidden = (noisy - of_image * image) / of_noise
            of_image, of_noise = _share(following)
            noisy = of_image * image + of_noise * hidden
        return image

    def _velocity(self, noisy: Tensor, level: float, classes: Tensor, guidance: Tensor) -> Tensor:
        """With `guidance` above 1, further away from what is there in images of any class."""
        backbone, head = self.averages()
        levels = torch.full((len(noisy),), level, device=noisy.device)
        found: Tensor = backbone(noisy, levels, head(classes))
        guided = ((guidance != 1) & (classes != self.classes)).nonzero()[:, 0]
        if len(guided):
            of_any = head(torch.full_like(classes[guided], self.classes))
            other = backbone(noisy[guided], levels[guided], of_any)
            found[guided] = other + guidance[guided, None, None, None] * (found[guided] - other)
        return found


def shares(levels: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of an image and what there is of noise at levels (B,) from 0 to 1: (B, 1, 1, 1) each.

    The squares have a sum of 1 and fall as a cosine does (Nichol and Dhariwal, 2021).
    """
    angles = levels[:, None, None, None] * (math.pi / 2)
    return angles.cos(), angles.sin()


def _share(level: float) -> tuple[float, float]:
    return math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)
