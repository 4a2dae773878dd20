"""Tokens drawn at random from the likeliest ones."""

import torch
from torch import Tensor
from torch.nn import functional as F


def draw(
    scores: Tensor, draws: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> Tensor:
    """A token (B,) for each row of scores (B, V), by a number (B,) from [0, 1) that was drawn for it.

    At temperature 0 it is the likeliest one. Above, only the `top_k` best (Fan et al., 2018; 0: all) are left, and
    of these the likeliest that together have a share of `top_p` (Holtzman et al., 2020); one is always left.
    """
    best, order = scores.sort(dim=1, stable=True, descending=True)
    shares = F.softmax(best / temperature.clamp(min=1e-3)[:, None], 1)
    ranks = torch.arange(shares.shape[1], device=shares.device)
    shares = shares.masked_fill((ranks >= top_k[:, None]) & (top_k[:, None] > 0), 0)
    shares = shares / shares.sum(1, keepdim=True)
    before = shares.cumsum(1) - shares
    shares = shares.masked_fill((before >= top_p[:, None]) & (ranks > 0), 0)
    reached = shares.cumsum(1)
    place = (reached <= draws[:, None] * reached[:, -1:]).sum(1, keepdim=True)
    last = (shares > 0).sum(1, keepdim=True) - 1  # where rounding went past it
    place = place.minimum(last).where(temperature[:, None] > 0, 0)
    return order.gather(1, place)[:, 0]


def numbers(seeds: Tensor, steps: int) -> Tensor:
    """Numbers (B, steps) from [0, 1), those of a row a function of its seed (B,) alone."""
    rows = [
        torch.rand(steps, generator=torch.Generator().manual_seed(int(seed)))
        for seed in seeds.tolist()
    ]
    return torch.stack(rows).to(seeds.device)
