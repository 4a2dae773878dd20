"""From feature maps to one vector that says what is to be seen, and where."""

import torch
from torch import Tensor, nn


class WhatAndWhere(nn.Module):
    """The mean of each map, and the place at which it is strongest (Levine et al., 2016).

    A mean alone is the same wherever a thing is, so that nothing read from it over time can tell how it moves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = 3 * channels
        self.sharpness = nn.Parameter(torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, 3 C): means, and places across and down, from -1 to 1."""
        places = maps.flatten(2).float()
        shares = torch.softmax(places * self.sharpness[:, None], -1).view(maps.shape)
        across = (shares.sum(2) * _along(maps.shape[3], maps)).sum(-1)
        down = (shares.sum(3) * _along(maps.shape[2], maps)).sum(-1)
        return torch.cat([places.mean(-1), across, down], -1)


def _along(side: int, maps: Tensor) -> Tensor:
    """The middles of `side` equal parts of the way from -1 to 1 (side,)."""
    return (torch.arange(side, device=maps.device) + 0.5) * (2 / side) - 1
