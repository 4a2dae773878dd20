"""What can be done to an image that a network learns to undo."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from models.parts.losses import ImageLoss, PixelwiseAbsolute, PixelwiseSquared
from models.parts.options import AUTO, Auto, Option
from tasks.parts.fidelity import Where, luma
from tasks.parts.holes import filled, hole_mask
from tasks.parts.images import Pixels

_GREY = torch.tensor([0.299, 0.587, 0.114])
_FROM_CHROMA = torch.tensor([[0.0, 1.402], [-0.344136, -0.714136], [1.772, 0.0]])
"""What blue and red chroma add to brightness in each channel (ITU-R BT.601, as in JPEG)."""


class Degradation(Option):
    """What was done to an image, and is to be undone.

    Pixels are bytes (C, H, W); images are tensors (B, C, H, W) in [0, 1].
    """

    keeps_grey: ClassVar[bool] = True
    """Whether a grey image has a grey answer."""

    @property
    def enlargement(self) -> int:
        """How many times as many pixels the answer has in both directions."""
        return 1

    def read(self, channels: int) -> int:
        """Channels of a degraded image, where the original has so many."""
        return channels

    def made(self, channels: int) -> int:
        """Channels that the network makes."""
        return channels

    @abstractmethod
    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        """The degraded image (read, H / enlargement, W / enlargement), the same for the same numbers drawn."""

    def spoil_anew(self, originals: Tensor, spoiled: Tensor) -> Tensor:
        """Degraded images to learn from, with new numbers drawn, if there is anything to draw."""
        return spoiled

    def seen(self, spoiled: Tensor) -> Tensor:
        """Degraded images (B, read, h, w) as the network sees them."""
        return spoiled

    def compose(self, spoiled: Tensor, made: Tensor, *, adds: bool) -> Tensor:
        """Answers (B, channels, H, W) from degraded images and what the network made of them.

        `adds`: whether that is what the degraded image lacks, and not all of the answer.
        """
        return spoiled + made if adds else made + 0.5

    def measured(self, pixels: Pixels) -> Any:
        """What of an answer is compared with the original: (C, h, w)."""
        return pixels

    def where(self, spoiled: Pixels) -> Where | None:
        """Where an answer is compared with the original; None: everywhere."""
        return None

    def loss(self) -> ImageLoss:
        """What is minimised where a request leaves it open."""
        return PixelwiseAbsolute()


class Denoising(Degradation):
    """Gaussian noise was added."""

    name: Literal["denoising"] = "denoising"
    sigma: float = Field(
        25.0, gt=0, le=150, description="Standard deviation of the noise, of 255 for white."
    )
    least_sigma: float | None = Field(
        None,
        ge=0,
        le=150,
        description="For noise of unknown strength: that of each image is drawn between this and `sigma`.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Denoising":
        if self.least_sigma is not None and self.least_sigma > self.sigma:
            raise ValueError("least_sigma is above sigma")
        return self

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        return _bytes(self._noisy(_images(original), random))

    def spoil_anew(self, originals: Tensor, spoiled: Tensor) -> Tensor:
        return self._noisy(originals, None)

    def _noisy(self, images: Tensor, random: torch.Generator | None) -> Tensor:
        least = self.sigma if self.least_sigma is None else self.least_sigma
        at = torch.rand((len(images), 1, 1, 1), generator=random, device=images.device)
        strength = (least + (self.sigma - least) * at) / 255
        noise = torch.randn(images.shape, generator=random, device=images.device)
        return (images + strength * noise).clamp(0, 1)


class SuperResolution(Degradation):
    """Made smaller (bicubic, antialiased)."""

    name: Literal["super-resolution"] = "super-resolution"
    factor: Literal[2, 3, 4] = Field(2, description="How many times as long both sides become.")

    @property
    def enlargement(self) -> int:
        return self.factor

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        height, width = original.shape[1] // self.factor, original.shape[2] // self.factor
        return _resized(original, height, width)

    def compose(self, spoiled: Tensor, made: Tensor, *, adds: bool) -> Tensor:
        return enlarged(spoiled, self.factor) + made if adds else made + 0.5

    def measured(self, pixels: Pixels) -> Any:
        # Brightness without the border, as the field compares (Timofte et al., 2014).
        border = self.factor if min(pixels.shape[1:]) > 4 * self.factor else 0
        return luma(pixels)[:, border : pixels.shape[1] - border, border : pixels.shape[2] - border]


class Colorization(Degradation):
    """Colours were taken away. Brightness is kept, and chroma is what the network makes."""

    name: Literal["colorization"] = "colorization"

    keeps_grey = False

    def read(self, channels: int) -> int:
        return 1

    def made(self, channels: int) -> int:
        return 2

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        return _bytes((_images(original) * _GREY.view(3, 1, 1)).sum(1, keepdim=True))

    def compose(self, spoiled: Tensor, made: Tensor, *, adds: bool) -> Tensor:
        blue, red = made.unbind(1)
        weights = _FROM_CHROMA.to(made)
        colours = [spoiled[:, 0] + of_blue * blue + of_red * red for of_blue, of_red in weights]
        return torch.stack(colours, 1)

    def loss(self) -> ImageLoss:
        return PixelwiseSquared()


class Inpainting(Degradation):
    """Holes were made. An input says by a mask, or by what is see-through in it, where they are."""

    name: Literal["inpainting"] = "inpainting"
    shape: Literal["rectangles", "ellipses"] = Field(
        "rectangles", description="Of the holes that are made to learn from."
    )
    size: int = Field(
        24,
        ge=2,
        le=256,
        description="Longest side of a hole in pixels; the shortest is half of it.",
    )
    coverage: Annotated[float, Field(gt=0, le=0.8)] = Field(
        0.15, description="Share of the image that holes would cover if none lay over another."
    )

    def read(self, channels: int) -> int:
        return channels + 1

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        return _bytes(self._pierced(_images(original), random))

    def spoil_anew(self, originals: Tensor, spoiled: Tensor) -> Tensor:
        return self._pierced(originals, None)

    def _pierced(self, images: Tensor, random: torch.Generator | None) -> Tensor:
        """The images with black holes, and where these are as one more channel."""
        holes = hole_mask(images, self.shape, self.size, self.coverage, random)
        return torch.cat([images * (1 - holes), holes], 1)

    def seen(self, spoiled: Tensor) -> Tensor:
        return torch.cat([filled(spoiled[:, :-1], spoiled[:, -1:]), spoiled[:, -1:]], 1)

    def compose(self, spoiled: Tensor, made: Tensor, *, adds: bool) -> Tensor:
        known, holes = spoiled[:, :-1], spoiled[:, -1:]
        found = filled(known, holes) + made if adds else made + 0.5
        return known * (1 - holes) + found * holes

    def where(self, spoiled: Pixels) -> Where | None:
        holes: Where = spoiled[-1] > 127
        return holes

    def loss(self) -> ImageLoss:
        return PixelwiseSquared()


class Autoencoding(Degradation):
    """Nothing was done: the network has few numbers to keep the image in, and gives it back from these."""

    name: Literal["autoencoding"] = "autoencoding"

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        return original

    def loss(self) -> ImageLoss:
        return PixelwiseSquared()


class Paired(Degradation):
    """Whatever lies between the uploaded inputs and targets."""

    name: Literal["paired"] = "paired"
    factor: Auto[Annotated[int, Field(ge=1, le=8)]] = Field(
        AUTO, description="How many times as long the sides of targets are as those of inputs."
    )

    keeps_grey = False

    @property
    def enlargement(self) -> int:
        return int(self.factor)

    def spoil(self, original: Pixels, random: torch.Generator) -> Pixels:
        raise NotImplementedError("inputs of pairs were uploaded")

    def compose(self, spoiled: Tensor, made: Tensor, *, adds: bool) -> Tensor:
        return enlarged(spoiled, self.factor) + made if adds else made + 0.5


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images (B, C, h, w) with sides `factor` times as long, bicubic."""
    if factor == 1:
        return images
    # Antialiasing changes nothing here but the kernel, which becomes that of Pillow (Keys, 1981; a = -0.5).
    return F.interpolate(images, scale_factor=factor, mode="bicubic", antialias=True).clamp(0, 1)


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Each channel as Pillow makes it smaller: every pixel of the original counts."""
    resize = Image.Resampling.BICUBIC
    smaller = [Image.fromarray(c).resize((width, height), resize) for c in pixels]
    return np.stack([np.asarray(image) for image in smaller])


def _images(pixels: Pixels) -> Tensor:
    """Pixels as a batch of one image in [0, 1]."""
    return torch.from_numpy(np.array(pixels))[None].float() / 255


def _bytes(images: Tensor) -> Pixels:
    """The one image of a batch as pixels."""
    found: Pixels = (images[0] * 255).round().clamp(0, 255).byte().numpy()
    return found
