"""Random variation of training images, on whole batches and on their device."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.parts.options import Plain


class Augmentation(Plain):
    """How training images are varied at random, anew in every step; nothing by default."""

    shift: float = Field(0.0, ge=0, le=0.5, description="Moved by up to this share of the side.")
    zoom: float = Field(0.0, ge=0, le=0.5, description="Enlarged or shrunk by up to this share.")
    rotate: float = Field(0.0, ge=0, le=180, description="Turned by up to so many degrees.")
    flip: bool = Field(
        False,
        description="Every second one mirrored; wrong where left and right matter, as in writing.",
    )
    light: float = Field(
        0.0, ge=0, le=1, description="Brightness and contrast changed by up to this share."
    )

    def move(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) of bytes or floats, each moved by draws from torch's own generator."""
        if max(self.zoom, self.rotate) > 0:
            grid = F.affine_grid(self._placements(images), list(images.shape), align_corners=False)
            return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        # By whole pixels nothing is computed from neighbours, and bytes stay bytes.
        return self._cut(images) if self.flip or self.shift else images

    def move_all(
        self, images: Tensor, maps: Sequence[Tensor], outside: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Images as `move` does, and maps of their pixels (B, H, W) alike; nothing is mixed in those.

        What comes into a map from outside is the number of it in `outside`; if things are moved by whole
        pixels only, the edge is repeated in maps, too.
        """
        if max(self.zoom, self.rotate) == 0:
            planes = [images, *(map[:, None] for map in maps)]
            moved = self.move(torch.cat(planes, 1)).split([p.shape[1] for p in planes], 1)
            kept = [m.to(p.dtype) for m, p in zip(moved, planes, strict=True)]
            return kept[0], [m.squeeze(1) for m in kept[1:]]
        grid = F.affine_grid(self._placements(images), list(images.shape), align_corners=False)
        drawn = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        # Less what is outside, since what comes in from there is 0.
        planes = [m[:, None].float() - number for m, number in zip(maps, outside, strict=True)]
        together = F.grid_sample(torch.cat(planes, 1), grid, mode="nearest", align_corners=False)
        numbers = together.round().unbind(1)
        return drawn, [
            (n + number).to(m.dtype) for n, m, number in zip(numbers, maps, outside, strict=True)
        ]

    def move_with_boxes(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W), each moved, and boxes (B, T, 4) in shares of its sides that move along.

        What comes in from outside is 0. Boxes of what is turned are those around its corners.
        """
        if not max(self.shift, self.zoom, self.rotate, self.flip):
            return images, boxes
        placements = self._placements(images)
        grid = F.affine_grid(placements, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False), _moved(boxes, placements)

    def relight(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W), each made darker or lighter, duller or clearer."""
        if not self.light:
            return images
        contrast, brightness = _draw(images, self.light), _draw(images, self.light)
        return images * (1 + contrast.view(-1, 1, 1, 1)) + brightness.view(-1, 1, 1, 1)

    def _cut(self, images: Tensor) -> Tensor:
        """Shifted and mirrored only; what comes in from outside repeats the edge."""
        height, width = images.shape[2:]
        rows = _places(height, _draw(images, self.shift * height))
        columns = _places(width, _draw(images, self.shift * width))
        if self.flip:
            mirrored = _draw(images, 1) < 0
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        places = (rows[:, :, None] * width + columns[:, None]).flatten(1)  # (B, H * W)
        pixels = images.flatten(2)
        return pixels.gather(2, places[:, None].expand_as(pixels)).view_as(images)

    def _placements(self, images: Tensor) -> Tensor:
        """Affine maps (B, 2, 3) from places in the result to places in the image."""
        angle = _draw(images, math.radians(self.rotate))
        size = 1 + _draw(images, self.zoom)
        mirror = _draw(images, 1).sign() if self.flip else torch.ones_like(angle)
        cos, sin = angle.cos() * size, angle.sin() * size
        # The coordinates run from -1 to 1: a share of the side is twice as much.
        across, down = _draw(images, 2 * self.shift), _draw(images, 2 * self.shift)
        rows = torch.stack([mirror * cos, -sin, across, mirror * sin, cos, down], dim=1)
        return rows.view(-1, 2, 3)


def _moved(boxes: Tensor, placements: Tensor) -> Tensor:
    """Boxes (B, T, 4) where affine maps (B, 2, 3) from places in the result to places in the image put them."""
    corners = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2)) * 2 - 1  # (B, T, 4, 2)
    # By hand: a batch of matrices is not worth a solver, and 0 * 0 never divides here.
    (a, b, across), (c, d, down) = (row.unbind(-1) for row in placements.unbind(1))
    by = (a * d - b * c)[:, None, None]
    x = corners[..., 0] - across[:, None, None]
    y = corners[..., 1] - down[:, None, None]
    a, b, c, d = (part[:, None, None] for part in (a, b, c, d))
    there = torch.stack([(d * x - b * y) / by, (a * y - c * x) / by], -1) / 2 + 0.5
    return torch.cat([there.amin(2), there.amax(2)], -1)


class Mixed(NamedTuple):
    """Images (B, C, H, W) of which a `share` is their own, and the rest their `partners`' (B,), by place."""

    images: Tensor
    partners: Tensor
    share: float


class Mixing(Plain):
    """How training images are mixed with others of their batch, and their labels with them; not at all by default."""

    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Pixels are averages of two images' (Zhang et al., 2018); the larger, the more even: 0.2 is usual.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="A rectangle comes from another image (Yun et al., 2019); the larger, the more even: 1 is usual.",
    )
    share: float = Field(
        1.0, gt=0, le=1, description="Share of the steps in which images are mixed."
    )

    @property
    def mixes(self) -> bool:
        return max(self.mixup, self.cutmix) > 0

    def mix(self, images: Tensor) -> Mixed:
        """Images (B, C, H, W), mixed by draws from torch's own generator; with both kinds on, either as often."""
        partners = torch.randperm(len(images)).to(images.device)
        if torch.rand(()) >= self.share:
            return Mixed(images, partners, 1.0)
        cuts = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
        alpha = self.cutmix if cuts else self.mixup
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        if cuts:
            return _pasted(images, partners, share)
        whole = images.float()
        return Mixed(whole * share + whole[partners] * (1 - share), partners, share)


def _pasted(images: Tensor, partners: Tensor, share: float) -> Mixed:
    """Images with a rectangle of others in them, about as large as the rest leaves room for."""
    height, width = images.shape[2:]
    top, bottom = _stretch(height, math.sqrt(1 - share))
    left, right = _stretch(width, math.sqrt(1 - share))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return Mixed(mixed, partners, 1 - (bottom - top) * (right - left) / (height * width))


def _stretch(side: int, share: float) -> tuple[int, int]:
    """Where a share of a side begins and ends that lies anywhere, and is cut off at the edges."""
    middle, half = int(torch.randint(side, ())), side * share / 2
    return max(0, round(middle - half)), min(side, round(middle + half))


def _places(side: int, moves: Tensor) -> Tensor:
    """Where the pixels along a side come from (B, side) when images move by so many pixels (B,)."""
    along = torch.arange(side, device=moves.device)
    return (along + moves.round().long()[:, None]).clamp(0, side - 1)


def _draw(images: Tensor, span: float) -> Tensor:
    """A number in [-span, span) for each image (B,)."""
    return (torch.rand(len(images), device=images.device) * 2 - 1) * span
