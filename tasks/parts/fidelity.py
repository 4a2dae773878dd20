"""How close an image comes to the one it should be."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.parts.images import Pixels

MOST_PSNR = 100.0
"""Decibels that stand for no difference at all."""
_WINDOW, _SIGMA = 11, 1.5

Where = NDArray[np.bool_]


class Fidelity(NamedTuple):
    """Peak signal-to-noise ratio in dB, and structural similarity up to 1."""

    psnr: float
    ssim: float


def fidelity(found: Pixels, wanted: Pixels, where: Where | None = None) -> Fidelity:
    """How close images (C, H, W) are, all over or where a mask (H, W) says so."""
    one, other = (torch.from_numpy(np.array(image, dtype=np.float64)) for image in (found, wanted))
    return Fidelity(_psnr(one, other, where), _ssim(one, other, where))


def luma(pixels: Pixels) -> NDArray[np.float64]:
    """Brightness (1, H, W) from 16 to 235 as ITU-R BT.601 has it: what super-resolution is measured on."""
    if len(pixels) == 1:
        return 16 + pixels.astype(np.float64) * (219 / 255)
    weights = np.array([65.481, 128.553, 24.966]) / 255
    brightness: NDArray[np.float64] = 16 + np.tensordot(weights, pixels, 1)[None]
    return brightness


def _psnr(found: Tensor, wanted: Tensor, where: Where | None) -> float:
    squares = (found - wanted) ** 2
    if where is not None and where.any():
        squares = squares[:, torch.from_numpy(where)]
    error = float(squares.mean())
    return min(MOST_PSNR, 10 * math.log10(255**2 / error)) if error else MOST_PSNR


def _ssim(found: Tensor, wanted: Tensor, where: Where | None) -> float:
    """Structural similarity with a Gaussian window, as far as windows lie inside (Wang et al., 2004)."""
    side = min(_WINDOW, *found.shape[1:])
    along = torch.arange(side) - (side - 1) / 2
    window = torch.softmax(-(along**2) / (2 * _SIGMA**2), 0)
    # Around 0, float32 has digits enough for differences of squares.
    one, other = found.float() - 128, wanted.float() - 128
    maps = torch.cat([one, other, one**2, other**2, one * other])
    blurred = _sliding(window, maps.shape[1]) @ maps @ _sliding(window, maps.shape[2]).T
    mean, mean_other, square, square_other, product = blurred.chunk(5)
    spread, spread_other = square - mean**2, square_other - mean_other**2
    together = product - mean * mean_other
    mean, mean_other = mean + 128, mean_other + 128
    small, less_small = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean * mean_other + small) / (mean**2 + mean_other**2 + small)
    structure = (2 * together + less_small) / (spread + spread_other + less_small)
    values = likeness * structure
    if where is not None:
        before, after = (side - 1) // 2, side // 2
        inside = torch.from_numpy(where)[before : len(where) - after]
        inside = inside[:, before : where.shape[1] - after]
        values = values[:, inside] if inside.any() else values
    return float(values.mean())


def _sliding(window: Tensor, length: int) -> Tensor:
    """The window at each of its places along so many pixels (places, length): a product with it blurs."""
    places = length - len(window) + 1
    return F.pad(window, (0, places)).repeat(places)[: places * length].view(places, length)
