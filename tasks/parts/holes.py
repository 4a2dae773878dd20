"""Holes in images: made at random, and filled with what lies around them."""

import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDS = 8
"""How often holes are smoothed at each scale; four times as many give hardly more (0.06 dB)."""


def hole_mask(
    images: Tensor, shape: str, size: int, coverage: float, random: torch.Generator | None
) -> Tensor:
    """Holes (B, 1, H, W), 1 where there is one, for images (B, C, H, W); each has at least one.

    Their sides are between half of `size` and `size`, in images with short sides at most half of those.
    """
    count, _, height, width = images.shape
    longest = max(1.0, min(size, height / 2, width / 2))
    mean = (0.75 * longest) ** 2 * (1.0 if shape == "rectangles" else torch.pi / 4)
    number = max(1, round(coverage * height * width / mean))
    draw = torch.rand((4, count, number), generator=random, device=images.device)
    middles = [draw[0] * height, draw[1] * width]
    halves = [longest * (0.25 + 0.25 * draw[2]), longest * (0.25 + 0.25 * draw[3])]
    down, across = (
        ((torch.arange(side, device=images.device) + 0.5) - middle[..., None]) / half[..., None]
        for side, middle, half in zip((height, width), middles, halves, strict=True)
    )  # (B, number, side), from -1 to 1 inside
    holes = torch.zeros((count, height, width), dtype=torch.bool, device=images.device)
    for hole in range(number):
        one, other = down[:, hole, :, None], across[:, hole, None, :]
        inside = (
            (one**2 + other**2 <= 1) if shape == "ellipses" else one.abs().max(other.abs()) <= 1
        )
        holes |= inside
    return holes[:, None].to(images.dtype)


def filled(images: Tensor, holes: Tensor) -> Tensor:
    """Images (B, C, H, W) whose holes (B, 1, H, W) have the colours around them.

    From coarse to fine: what is known is averaged over larger and larger squares, and holes take the value of
    the smallest square that knows any (Gortler et al., 1996). At each scale every place in a hole then becomes
    the mean of those around it, again and again: colours run from edge to edge as a stretched skin does.
    """
    known = 1 - holes
    return _pulled(images * known, known)


def _pulled(weighted: Tensor, known: Tensor) -> Tensor:
    """Colours (B, C, H, W) from those times how much of each is known (B, 1, H, W)."""
    height, width = known.shape[2:]
    own = weighted / known.clamp(min=1e-6)
    if max(height, width) == 1:
        return own
    pooled = [
        F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (weighted, known)
    ]
    full = (4 * pooled[1]).clamp(max=1)  # a quarter of a square that is known tells its colour
    coarse = _pulled(pooled[0] / pooled[1].clamp(min=1e-6) * full, full)
    around = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
    found = own * known + around * (1 - known)
    for _ in range(_ROUNDS):
        found = own * known + _around(found) * (1 - known)
    return found


def _around(images: Tensor) -> Tensor:
    """The mean of the four neighbours of every place (B, C, H, W); beyond the edges it repeats."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    up, down = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    return (up + down + left + right) / 4
