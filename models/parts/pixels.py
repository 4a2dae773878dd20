"""Layers that turn whole images into others: any size in, the same size out."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone

Fold = Literal[1, 2, 4]


class WholeImages(Backbone):
    """A network whose maps have sides that are multiples of `reach`, for images of any size."""

    reach: int

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return self.features(filled_up(images, self.reach))[..., :height, :width]

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, width, H, W), where H and W are multiples of `reach`."""
        raise NotImplementedError


def filled_up(images: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W) with their last rows and columns repeated until sides are multiples."""
    below, beside = (-side % multiple for side in images.shape[2:])
    if below or beside:
        images = F.pad(images, (0, beside, 0, below), mode="replicate")
    return images


class Unfolding(nn.Module):
    """Maps (B, inputs, h, w) to (B, width, h * fold, w * fold): channels become pixels (Shi et al., 2016)."""

    def __init__(self, inputs: int, width: int, fold: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, width * fold**2, 3, padding=1)
        self.fold = fold

    def forward(self, maps: Tensor) -> Tensor:
        return F.pixel_shuffle(self.convolution(maps).relu(), self.fold)
