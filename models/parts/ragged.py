"""Sequences of different lengths in one tensor, and some of them as a padded batch."""

import torch
from torch import Tensor


def padded(values: Tensor, offsets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences at `index` (B,) padded with 0 to (B, T, ...), T the longest of these, and lengths (B,).

    All values (M, ...) lie in one tensor, those of sequence i at offsets[i]:offsets[i + 1].
    """
    starts, lengths = offsets[index], offsets[index + 1] - offsets[index]
    places = torch.arange(int(lengths.max()), device=index.device)
    inside = places < lengths[:, None]
    found = values[(starts[:, None] + places).clamp(max=len(values) - 1)]
    return found * inside.view(*inside.shape, *[1] * (found.dim() - 2)), lengths
