"""Activations and norms a request can name, what makes them safe for a batch of one, and layers around networks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "leaky-relu", "gelu", "silu", "tanh", "sigmoid", "logistic"]
Norm = Literal["batch", "layer", "none"]

RISING: tuple[Activation, ...] = ("relu", "leaky-relu", "tanh", "sigmoid", "logistic")
"""Activations that keep the order of numbers."""
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "logistic": nn.Sigmoid,
}


def sequence(*layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, without those that do nothing: calling one takes its time."""
    return nn.Sequential(*(layer for layer in layers if not _does_nothing(layer)))


def _does_nothing(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def activation(name: Activation) -> nn.Module:
    """The nonlinearity of that name; `logistic` is another word for `sigmoid`."""
    return _ACTIVATIONS[name]()


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation (Ioffe and Szegedy, 2015) that also takes one example to train on.

    The last batch of an epoch may hold a single value per channel, which has no variance: its
    running statistics stand in.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _by_running_statistics(self, x) if _lone(self, x) else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """The same for images (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_running_statistics(self, x) if _lone(self, x) else super().forward(x)


def _lone(norm: nn.Module, x: Tensor) -> bool:
    return norm.training and x.numel() == x.shape[1]


def _by_running_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def row_norm(name: Norm, width: int) -> nn.Module:
    """The norm of that name for rows (B, width)."""
    if name == "batch":
        return BatchNorm1d(width)
    return nn.LayerNorm(width) if name == "layer" else nn.Identity()


def map_norm(name: Norm, width: int) -> nn.Module:
    """The norm of that name for feature maps (B, width, h, w); `layer` is a single group."""
    if name == "batch":
        return BatchNorm2d(width)
    return nn.GroupNorm(1, width) if name == "layer" else nn.Identity()


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al., 2016) of each place of a feature map (B, C, h, w) over its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PathDropout(nn.Module):
    """Leaves out what a block adds, for a share of the examples in training (Huang et al., 2016)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """What is added (B, ...) to the same or zeros, as large in the mean."""
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.share
        return x * kept / (1 - self.share)


class Normalised(nn.Module):
    """Bytes of images (..., C, H, W) to numbers of mean 0 and deviation 1, if those of the bytes are these."""

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        # Not among the weights: codecs hold them.
        self.register_buffer("scale", 1 / stds, persistent=False)
        self.register_buffer("offset", -means / stds, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale)
