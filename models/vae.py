"""Variational autoencoder of images: learns codes for images whose like can be drawn at random."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, Batch, ImageGenerator
from models.parts.generating import ImageMaker
from models.parts.maps import finer, narrowed, side_of, widths_of
from models.parts.optimizers import AdamW
from models.parts.precision import autocast
from models.parts.schedules import Cosine


class VAE(ImageGenerator):
    """Variational autoencoder (Kingma and Welling, 2014), told the class of each image."""

    name: Literal["vae"] = "vae"
    width: int = Field(
        32,
        ge=8,
        le=512,
        multiple_of=8,
        description="Channels of the finest maps; coarser ones have more.",
    )
    codes: int = Field(64, ge=1, le=4_096, description="Numbers that an image becomes.")
    beta: float = Field(
        0.01,
        gt=0,
        le=100,
        description="Weight of how far codes are from random numbers, beside the squared error of pixels in "
        "[-1, 1]: less is sharper, more makes images that are drawn more like those that were seen "
        "(Higgins et al., 2017).",
    )
    average: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="How slowly the averaged weights that images are made with follow.",
    )

    def build(self, channels: int, side: int, classes: int) -> "Autoencoder":
        return Autoencoder(channels, side, classes, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-3), "schedule": Cosine(warmup=0.05)}


class Coder(Backbone):
    """From images to codes and back, both told what the images show."""

    def __init__(self, channels: int, side: int, options: VAE) -> None:
        super().__init__()
        widths = widths_of(options.width, side)
        self.width, self.codes, self.widest = 4 * options.width, options.codes, widths[-1]
        self.small = side_of(side, widths)
        cells = widths[-1] * self.small**2
        self.reading = narrowed(channels, widths)
        self.to_codes = nn.Linear(cells + self.width, 2 * options.codes)
        self.from_codes = nn.Linear(options.codes + self.width, cells)
        self.writing = finer(widths, channels)

    def read(self, images: Tensor, meanings: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to means and logarithms of variances (B, codes) of their codes."""
        cells = self.reading(images).flatten(1)
        mean, spread = self.to_codes(torch.cat([cells, meanings], 1)).chunk(2, 1)
        return mean, spread.clamp(-10, 10)

    def write(self, codes: Tensor, meanings: Tensor) -> Tensor:
        """Codes (B, codes) to images (B, C, H, W)."""
        cells = self.from_codes(torch.cat([codes, meanings], 1))
        images: Tensor = self.writing(cells.view(len(codes), self.widest, self.small, self.small))
        return images.tanh()

    def blocks(self) -> list[nn.Module]:
        return [*self.reading, self.to_codes, self.from_codes, *self.writing]


class Autoencoder(ImageMaker):
    """Learns to give images codes that are like random numbers, and to tell the images from them."""

    backbone: Coder

    def __init__(self, channels: int, side: int, classes: int, options: VAE) -> None:
        network = Coder(channels, side, options)
        super().__init__(network, (channels, side, side), classes, options.average)
        self.beta = options.beta

    def forward(self, *inputs: Tensor) -> Tensor:
        """Images (B, C, H, W), noise (B, codes) and classes (B,) to codes and images (B, 2 * codes + C * H * W)."""
        images, hidden, classes = inputs
        meanings = self.head(classes)
        mean, spread = self.backbone.read(images, meanings)
        again = self.backbone.write(mean + hidden * (spread / 2).exp(), meanings)
        return torch.cat([mean, spread, again.flatten(1)], 1)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the pixels, and the divergence of the codes from normal numbers per pixel."""
        images, classes = self.seen(batch), batch.inputs[0][:, 0]
        hidden = torch.randn(len(images), self.backbone.codes, device=images.device)
        with autocast(self.precision, images.device):
            found = (self.kernels or self)(images, hidden, classes)
        codes = self.backbone.codes
        mean, spread, again = found.float().split([codes, codes, images[0].numel()], 1)
        divergence = (mean**2 + spread.exp() - 1 - spread).sum(1).mean() / 2
        error = F.mse_loss(again, images.flatten(1))
        loss: Tensor = error + self.beta * divergence / images[0].numel()
        return loss

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.backbone.codes,)

    def make(self, start: Tensor, classes: Tensor, steps: int, guidance: Tensor) -> Tensor:
        """In one step, whatever `steps` says."""
        coder, head = self.averages()
        assert isinstance(coder, Coder)
        return coder.write(start, head(classes))
