"""What pictures look like: statistics of filters that nobody trained, and how far two pictures are apart by them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALES, TEXTURES, COLOURS, TINTS, KERNEL = 4, 32, 16, 12, 7
NUMBERS = 2 * SCALES * (TEXTURES + COLOURS + TINTS)
"""How many numbers `numbers` gives."""
_SEED = 0
_SPREAD = 4.0  # about what makes pixels in [0, 1] of deviation 1
_GAIN = 2.0
_BLUR = (1.0, 3.0, 3.0, 1.0)
_SMOOTH = 1.0
_FLAT = 1e-3  # maps that vary less show nothing
_WHISPER = 0.02
_FAINT = 1e-3  # of squared Gram matrices: less of anything is nothing


class Maps(NamedTuple):
    """Answers of filters to images, one map (B, filters, h, w) for each scale, the finest first."""

    textures: list[Tensor]
    """Of filters that see how brightness and colours change from place to place."""
    colours: list[Tensor]
    """Of filters that see single pixels of the scale."""
    tints: list[Tensor]
    """Of those that see how far pixels are from grey, which is little beside how bright they are."""

    def all(self) -> list[Tensor]:
        """Every map, in the same order for all images."""
        return [*self.textures, *self.colours, *self.tints]


class RandomFilters(nn.Module):
    """Filters at several scales that are drawn once and for all, the same ones everywhere.

    Their statistics tell textures as well as those of trained networks (Ustyuzhaninov et al., 2017; He et al., 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(_SEED)
        textures = torch.randn((TEXTURES, 3, KERNEL, KERNEL), generator=random)
        # Mostly of brightness, as what there is to see in pictures.
        textures = _smoothed(textures / 2 + textures.mean(1, keepdim=True))
        textures = textures - textures.mean((2, 3), keepdim=True)
        colours = torch.randn((COLOURS, 3, 1, 1), generator=random)
        tints = torch.randn((TINTS, 3, 1, 1), generator=random)
        tints = tints - tints.mean(1, keepdim=True)
        thresholds = 2 * torch.rand(COLOURS, generator=random) - 1
        row = torch.tensor(_BLUR) / sum(_BLUR)
        # Not among the weights: they are drawn again.
        for name, drawn in {
            "textures": _GAIN * _of_length_one(textures),
            "colours": _of_length_one(colours),
            "tints": _of_length_one(tints),
            "thresholds": thresholds,
            "blur": torch.outer(row, row).expand(3, 1, -1, -1).clone(),
        }.items():
            self.register_buffer(name, drawn, persistent=False)

    def forward(self, images: Tensor) -> Maps:
        """Images (B, 3, H, W) in [0, 1] to maps of each scale."""
        found = Maps([], [], [])
        seen = (images - 0.5) * _SPREAD
        for scale in range(SCALES):
            if scale:
                seen = F.conv2d(_wider(seen, 1), self.get_buffer("blur"), stride=2, groups=3)
            textures = F.conv2d(_wider(seen, KERNEL // 2), self.get_buffer("textures"))
            colours = F.conv2d(seen, self.get_buffer("colours"), self.get_buffer("thresholds"))
            found.textures.append(textures.relu())
            found.colours.append(colours.relu())
            found.tints.append(F.conv2d(seen, self.get_buffer("tints")).relu())
        return found


def numbers(maps: Maps) -> Tensor:
    """Mean and deviation of every map as logarithms, (B, NUMBERS): all that a network is told of a style."""
    found = [statistic for part in maps.all() for statistic in _moments(part)]
    # Of what there is little, tints above all, is to be heard beside what there is much of.
    return (torch.cat(found, 1) + _WHISPER).log()


def grams(maps: Sequence[Tensor]) -> list[Tensor]:
    """How often the filters of each map answer together, (B, filters, filters) (Gatys et al., 2016)."""
    return [_gram(part.flatten(2)) for part in maps]


def style_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """How far Gram matrices are from those of a style (B,), as shares of its own; 0.7 of a picture with none."""
    shares = [
        (ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2)).clamp(min=_FAINT)
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    # Slower the further: a style without colours leaves something to learn beside taking them away.
    return torch.stack(shares, 1).log1p().mean(1)


def content_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """How far maps are from those of a content (B,), whatever their contrast: 0 for the same, 2 for unrelated ones."""
    gaps = [
        (_standardised(ours) - _standardised(theirs)).square().mean((1, 2, 3))
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    return torch.stack(gaps, 1).mean(1)


def roughness(images: Tensor) -> Tensor:
    """The mean difference of neighbouring pixels (B,), the total variation."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean((1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    return down + across


def coarse(maps: Maps) -> list[Tensor]:
    """The maps by which content is known; the finest are left to strokes."""
    return maps.textures[1:]


def _smoothed(filters: Tensor) -> Tensor:
    places = torch.arange(KERNEL) - KERNEL // 2
    bell = torch.exp(-(places**2) / (2 * _SMOOTH**2))
    kernel = torch.outer(bell, bell)[None, None]
    alone = filters.flatten(0, 1)[:, None]
    return F.conv2d(alone, kernel, padding=KERNEL // 2).view_as(filters)


def _of_length_one(filters: Tensor) -> Tensor:
    lengths = filters.flatten(1).square().sum(1).sqrt()
    return filters / lengths.view(-1, 1, 1, 1)


def _wider(images: Tensor, by: int) -> Tensor:
    return F.pad(images, (by, by, by, by), mode="replicate")


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(maps, dim=(2, 3), correction=0)
    return mean, std


def _gram(maps: Tensor) -> Tensor:
    return maps @ maps.transpose(1, 2) / maps.shape[2]


def _standardised(maps: Tensor) -> Tensor:
    # By hand: the root of nothing has no gradient.
    centred = maps - maps.mean((2, 3), keepdim=True)
    spread = (centred.square().mean((2, 3), keepdim=True) + _FLAT**2).sqrt()
    return centred / spread
