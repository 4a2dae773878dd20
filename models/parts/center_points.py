"""Objects as points: a heat map of their centres, and around each centre the way to the sides of its box."""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MapBackbone
from models.parts.boxes import areas, generalised_overlaps
from models.parts.detection import MOST, Candidates, DetectionHead, Detector, Objects
from models.parts.neck import TopDown, block

RARE = -4.6
"""The first score of a centre before the sigmoid: one of a hundred places (Lin et al., 2017)."""
REACH = 0.54
"""Share of a box around whose centre its sides are learned (Liu et al., 2020)."""
FARTHEST = 4.0
"""Sides are at most e to this times the first guess away; no more than a bound on exp."""
BOX_WEIGHT = 5.0


class CenterPoints(Detector):
    """Peaks of a heat map of centres (Zhou et al., 2019), and boxes learned all around them (Liu et al., 2020)."""

    name: Literal["center-points"] = "center-points"
    stride: Literal[2, 4, 8, 16] = Field(
        4,
        description="Pixels that a place of the heat map stands for; finer maps tell small objects apart.",
    )
    width: int = Field(64, ge=4, le=1024, description="Channels of the layers over the backbone.")

    def head(self, backbone: MapBackbone, classes: int, side: int) -> DetectionHead:
        neck = TopDown(backbone.widths, backbone.strides, self.stride, side, self.width)
        return Points(neck, self.width, classes)

    def criterion(self) -> nn.Module:
        return PointLoss()


class Points(DetectionHead):
    """Scores of centres and distances to the sides of boxes: (B, classes + 4, h, w)."""

    def __init__(self, neck: TopDown, width: int, classes: int) -> None:
        super().__init__()
        self.neck = neck
        self.centres = nn.Sequential(block(width, width), nn.Conv2d(width, classes, 1))
        self.sides = nn.Sequential(block(width, width), nn.Conv2d(width, 4, 1))
        for part, bias in ((self.centres[-1], RARE), (self.sides[-1], 0.0)):
            assert isinstance(part, nn.Conv2d)
            nn.init.normal_(part.weight, std=0.01)
            nn.init.constant_(part.bias, bias)  # type: ignore[arg-type] # it has one

    def forward(self, maps: list[Tensor]) -> Tensor:
        joined = self.neck(maps)
        return torch.cat([self.centres(joined), self.sides(joined)], 1)

    def candidates(self, outputs: Tensor) -> Candidates:
        heat, boxes = outputs[:, :-4].sigmoid(), boxes_at(outputs[:, -4:])
        peaks = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
        places = peaks[0, 0].numel()
        flat = peaks.flatten(1)
        scores, found = flat.topk(min(MOST, flat.shape[1]))
        at = (found % places)[:, None].expand(-1, 4, -1)
        return Candidates(boxes.flatten(2).gather(2, at).transpose(1, 2), scores, found // places)


def boxes_at(sides: Tensor) -> Tensor:
    """What the network says of the sides seen from each place (B, 4, h, w) as boxes in shares (B, 4, h, w)."""
    across, down = _places(sides)
    # A tenth of the image at first.
    left, top, right, bottom = (0.1 * sides.clamp(-FARTHEST, FARTHEST).exp()).unbind(1)
    return torch.stack([across - left, down - top, across + right, down + bottom], 1)


def _places(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The middles of a map's places in shares of its sides: across (w,) and down (h, 1)."""
    height, width = maps.shape[2:]
    across = (torch.arange(width, device=maps.device) + 0.5) / width
    down = (torch.arange(height, device=maps.device) + 0.5) / height
    return across, down[:, None]


class Drawn(NamedTuple):
    """What a network should say of a batch of images."""

    heat: Tensor
    """(B, classes, h, w), 1 at centres."""
    boxes: Tensor
    """The box to be told at each place (B, 4, h, w)."""
    shares: Tensor
    """How much each place says of its box (B, h, w): 1 over all places of an object that none hides."""
    unknown: Tensor
    """Where nothing is known (B, h, w)."""


def draw(objects: Objects, classes: int, like: Tensor) -> Drawn:
    """Every object as an oval hill of its box's shape, small ones before large ones."""
    count, (height, width) = len(like), like.shape[2:]
    across, down = _places(like)
    heat = like.new_zeros(count, classes, height, width)
    boxes = like.new_zeros(count, 4, height, width)
    shares, unknown = like.new_zeros(count, height, width), torch.zeros_like(like[:, 0]).bool()
    order = areas(objects.boxes).argsort(dim=1, descending=True, stable=True)
    sorted_boxes = objects.boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    rows = torch.arange(count, device=like.device)
    for box, kind in zip(
        sorted_boxes.unbind(1), objects.classes.gather(1, order).unbind(1), strict=True
    ):
        left, top, right, bottom = (side[:, None, None] for side in box.unbind(1))
        # The centre moves to the middle of the place that it is in, where the hill is 1.
        x = (((left + right) / 2 * width).floor().clamp(0, width - 1) + 0.5) / width
        y = (((top + bottom) / 2 * height).floor().clamp(0, height - 1) + 0.5) / height
        reach_x = (REACH * (right - left) / 2).clamp(min=0.5 / width)
        reach_y = (REACH * (bottom - top) / 2).clamp(min=0.5 / height)
        far_x, far_y = (across - x) / reach_x, (down - y) / reach_y
        near = (far_x.abs() <= 1) & (far_y.abs() <= 1) & (kind >= 0)[:, None, None]
        # At the edge of its reach, a hill is three deviations low.
        hill = torch.exp(-4.5 * (far_x**2 + far_y**2)) * near
        at = rows, kind.clamp(min=0)
        heat[at] = torch.maximum(heat[at], hill)
        boxes = torch.where(near[:, None], box[:, :, None, None], boxes)
        total = hill.sum((1, 2), keepdim=True).clamp(min=1e-6)
        shares = torch.where(near, hill / total, shares)
        within = (across >= left) & (across <= right) & (down >= top) & (down <= bottom)
        unknown = unknown | (within & (kind == -1)[:, None, None])
    return Drawn(heat, boxes, shares, unknown & (heat.amax(1) == 0))


class PointLoss(nn.Module):
    """The focal loss of the heat map and generalised overlaps of boxes (Liu et al., 2020)."""

    def forward(self, outputs: Tensor, objects: Objects) -> Tensor:
        """Outputs (B, classes + 4, h, w) to their sum ()."""
        scores = outputs[:, :-4]
        drawn = draw(objects, scores.shape[1], outputs)
        told = boxes_at(outputs[:, -4:]).movedim(1, -1)
        apart = 1 - generalised_overlaps(told, drawn.boxes.movedim(1, -1))
        heat = focal(scores, drawn.heat) * ~drawn.unknown[:, None]
        return heat.sum() + BOX_WEIGHT * (apart * drawn.shares).sum()


def focal(scores: Tensor, heat: Tensor) -> Tensor:
    """The loss of every score beside a heat map, both (B, classes, h, w) (Zhou et al., 2019)."""
    likely = scores.sigmoid()
    at_centre = -((1 - likely) ** 2) * F.logsigmoid(scores)
    elsewhere = -((1 - heat) ** 4) * likely**2 * F.logsigmoid(-scores)
    return torch.where(heat == 1, at_centre, elsewhere)
