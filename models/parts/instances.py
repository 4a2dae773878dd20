"""Objects that touch, told apart by what every pixel says of their centres (Panoptic-DeepLab; Cheng et al., 2020)."""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.dense import PixelDecoder, PixelLoss
from models.parts.options import Plain

MOST_OBJECTS = 2_000
"""Numbers of objects in an image are 1 to this; 0 is where none is."""
UNIT = 8.0
"""Pixels that an offset of 1 is."""
BESIDE_CLASSES = 3
"""Outputs for each pixel beside the scores of classes: how central it is, and where its centre is, down and across."""
_LEAST_SHARE = 0.05
_RARE = -3.0


class InstanceLoss(Plain):
    """What class each pixel is of, how central it is in its object, and where its object's centre is."""

    dice: float = Field(1.0, ge=0, le=100, description="Weight of the overlap of each class.")
    centre: float = Field(1.0, ge=0, le=100, description="Weight of how central pixels are.")
    offset: float = Field(1.0, ge=0, le=100, description="Weight of where centres are.")

    def build(self, classes: int) -> nn.Module:
        """The criterion for so many classes, the first of which is the background."""
        return InstanceCriterion(classes, self)


def expect_few(decoder: PixelDecoder, classes: int) -> None:
    """Have a fresh decoder take hardly any pixel for a centre, as it is: else unlearning that comes first."""
    assert decoder.answer.bias is not None
    with torch.no_grad():
        decoder.answer.bias[classes] = _RARE


class Centres(NamedTuple):
    """What is true of every pixel."""

    heat: Tensor
    """How central it is in its object, (B, H, W): 1 at the centre, 0 outside of objects."""
    offsets: Tensor
    """Where the centre of its object is, in `UNIT`s down and across: (B, 2, H, W)."""


class InstanceCriterion(nn.Module):
    """Outputs (B, classes + 3, H, W), classes (B, H, W) uint8 and numbers of objects (B, H, W) to a loss ().

    A mean over images, whatever the number and the size of their objects.
    """

    def __init__(self, classes: int, options: InstanceLoss) -> None:
        super().__init__()
        self.classes, self.options = classes, options
        self.of_classes = PixelLoss(dice=options.dice).build([1] * classes)

    def forward(self, outputs: Tensor, classes: Tensor, objects: Tensor) -> Tensor:
        scores, heat, offsets = outputs.split([self.classes, 1, 2], 1)
        truth, inside = centres(objects), (objects > 0).to(outputs.dtype)
        covered = inside.sum((1, 2))
        apart = F.binary_cross_entropy_with_logits(heat.squeeze(1), truth.heat, reduction="none")
        # As much as there is of objects, since most of an image may be none.
        central = apart.sum((1, 2)) / (covered + _LEAST_SHARE * objects[0].numel())
        astray = F.smooth_l1_loss(offsets, truth.offsets, reduction="none").sum(1)
        away = (astray * inside).sum((1, 2)) / covered.clamp(min=1)
        found: Tensor = self.of_classes(scores, classes)
        return found + self.options.centre * central.mean() + self.options.offset * away.mean()


def centres(objects: Tensor) -> Centres:
    """What numbers of objects (B, H, W) say of every pixel.

    How central a pixel is falls off as a bell as wide as its object is large; it is 1 at the pixel of the
    object that is nearest to its mean place, which may itself be outside of a bent one.
    """
    count, height, width = objects.shape
    device = objects.device
    down = torch.arange(height, device=device).float().view(1, -1, 1).expand(objects.shape)
    across = torch.arange(width, device=device).float().view(1, 1, -1).expand(objects.shape)
    first = torch.arange(count, device=device).view(-1, 1, 1) * (MOST_OBJECTS + 1)
    places = (objects.long() + first).flatten()

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(count * (MOST_OBJECTS + 1), device=device)
        return sums.index_add(0, places, values.flatten())

    area = total(torch.ones_like(down)).clamp(min=1)
    middles = [(total(along) / area)[places].view(objects.shape) for along in (down, across)]
    offsets = torch.stack([middles[0] - down, middles[1] - across], 1)
    distance = offsets.square().sum(1)
    nearest = torch.full_like(area, math.inf).scatter_reduce(0, places, distance.flatten(), "amin")
    beyond = distance - nearest[places].view(objects.shape)
    # A disc of that area has a radius of 2.5 deviations.
    spread = (area / math.pi / 2.5**2).clamp(min=1)[places].view(objects.shape)
    heat = torch.exp(-beyond / (2 * spread)) * (objects > 0)
    return Centres(heat, offsets / UNIT)


def told(outputs: Tensor, classes: int, reach: int = 3) -> Tensor:
    """What objects are made of, (B, 5, H, W), from outputs (B, classes + 3, H, W).

    Of every pixel its class and that one's probability, how likely it is the centre of an object (0 if
    another one within `reach` pixels is more likely), and the offset of its object's centre in pixels.
    """
    scores, heat, offsets = outputs.split([classes, 1, 2], 1)
    best = scores.softmax(1).max(1, keepdim=True)
    # Smoothed, so that a plateau has one summit.
    heat = F.avg_pool2d(heat.sigmoid(), 3, 1, 1, count_include_pad=False)
    summits = heat == F.max_pool2d(heat, 2 * reach + 1, 1, reach)
    return torch.cat([best.indices.to(heat.dtype), best.values, heat * summits, offsets * UNIT], 1)
