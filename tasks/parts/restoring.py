"""The learner that makes one image of another: from random crops, and for whole images piece by piece."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, Batch, Supervised
from models.parts.precision import autocast
from tasks.parts.degradations import Degradation
from tasks.parts.tiles import cut, whole
from tasks.parts.whole_images import packed

SQUARE, MARGIN = 512, 64
"""Sides in pixels of the squares that large images are computed in, and how far each sees beyond itself.

Multiples of what any network folds or halves: its places are the same ones in every square.
"""


class Head(nn.Module):
    """Features (B, width, h, w) to images (B, channels, h * factor, w * factor) (Shi et al., 2016)."""

    def __init__(self, width: int, channels: int, factor: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, channels * factor**2, 3, padding=1)
        self.factor = factor
        # An untrained network changes little.
        self.convolution.weight.data.mul_(0.1)

    def forward(self, features: Tensor) -> Tensor:
        return F.pixel_shuffle(self.convolution(features), self.factor)


class Restorer(Supervised):
    """Learns to undo a degradation, from degraded and original images as tiles.

    Inputs are tiles (B, T, read, 16, 16), their number (B,), and height, width and greyness (B, 3).
    """

    def __init__(
        self,
        backbone: Backbone,
        criterion: nn.Module,
        degradation: Degradation,
        channels: int,
        *,
        adds: bool,
        crop: int,
        crops: int,
        turns: bool,
    ) -> None:
        """`crop` is the side of crops of originals in pixels, `crops` their number per image and epoch."""
        made, factor = degradation.made(channels), degradation.enlargement
        super().__init__(backbone, Head(backbone.width, made, factor), criterion)
        self.degradation, self.adds, self.turns = degradation, adds, turns
        self.side, self.crops = max(1, crop // factor), crops

    def forward(self, *inputs: Tensor) -> Tensor:
        """Degraded images (B, read, h, w) in [0, 1] to answers (B, channels, H, W), about as far."""
        (spoiled,) = inputs
        made = self.head(self.backbone(self.degradation.seen(spoiled) - 0.5))
        return self.degradation.compose(spoiled, made, adds=self.adds)

    def loss(self, batch: Batch) -> Tensor:
        spoiled, originals = self._crops(batch)
        with autocast(self.precision, spoiled.device):
            found = (self.kernels or self)(spoiled)
        loss: Tensor = self.criterion(found.float(), originals)
        return loss

    def batches(
        self, examples: int, lengths: Tensor | None, batch_size: int, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """Every image `crops` times, in random order: crops have one size, whatever their images have."""
        rounds = [torch.randperm(examples, generator=generator) for _ in range(self.crops)]
        return list(torch.cat(rounds).split(batch_size))

    def _crops(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Degraded and original crops in [0, 1], each from anywhere in its image."""
        tiles, _, sizes = batch.inputs
        sizes, factor = sizes[:, :2], self.degradation.enlargement
        room = (sizes - self.side).clamp(min=0) + 1
        draw = torch.rand((len(tiles), 2), device=tiles.device)
        corners = (draw * room).long().minimum(room - 1)
        ways = torch.randint(8 if self.turns else 1, (len(tiles),), device=tiles.device)
        spoiled = cut(tiles, sizes, corners, self.side, ways).float() / 255
        targets = batch.targets[0]
        originals = cut(targets, sizes * factor, corners * factor, self.side * factor, ways)
        originals = originals.float() / 255
        return self.degradation.spoil_anew(originals, spoiled), originals

    def predict(self, *inputs: Tensor) -> Tensor:
        """Answers (B, HEADER + C * H * W) of the largest of these sizes, pixels from 0 to 255.

        Each image is computed by itself, so that no byte of it depends on its neighbours.
        """
        tiles, _, sizes = inputs
        answers = [
            self._answer(parts, int(height), int(width), grey=bool(grey))
            for parts, (height, width, grey) in zip(tiles, sizes.tolist(), strict=True)
        ]
        return packed(answers)

    def _answer(self, tiles: Tensor, height: int, width: int, *, grey: bool) -> Tensor:
        image = self.restore(whole(tiles, height, width))
        if grey and self.degradation.keeps_grey:
            image = image.mean(0, keepdim=True)
        return image

    def restore(self, spoiled: Tensor, square: int = SQUARE, margin: int = MARGIN) -> Tensor:
        """The answer (C, H, W) for degraded pixels (read, h, w), computed in squares of bounded size."""
        height, width = spoiled.shape[1:]
        factor, rows = self.degradation.enlargement, []
        for down in _stretches(height, square, margin):
            row = []
            for across in _stretches(width, square, margin):
                part = spoiled[:, down.seen, across.seen].float() / 255
                found = self(part[None])[0]
                row.append(found[:, down.kept(factor), across.kept(factor)])
            rows.append(torch.cat(row, 2))
        return torch.cat(rows, 1)


class _Stretch:
    """A part of a side: what is seen of it, and what of that is kept."""

    def __init__(self, start: int, stop: int, side: int, margin: int) -> None:
        begin, end = max(0, start - margin), min(side, stop + margin)
        self.seen = slice(begin, end)
        self._kept = (start - begin, stop - begin)

    def kept(self, factor: int) -> slice:
        """The part of the answer, `factor` times as long, that is kept."""
        start, stop = self._kept
        return slice(start * factor, stop * factor)


def _stretches(side: int, square: int, margin: int) -> Iterator[_Stretch]:
    for start in range(0, side, square):
        yield _Stretch(start, min(side, start + square), side, margin)
