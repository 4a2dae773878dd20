"""Rows of a table as one matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def matrix(
    numbers: Tensor, categories: Tensor, cardinalities: Sequence[int], most: int | None = None
) -> Tensor:
    """Numbers (B, numeric), and a column of 0 and 1 for each category of (B, columns), side by side.

    A column of more than `most` categories stays one column, of their codes.
    """
    columns = [
        column[:, None] if most and size > most else F.one_hot(column, size)
        for column, size in zip(categories.unbind(1), cardinalities, strict=True)
    ]
    return torch.cat([numbers, *(column.to(numbers.dtype) for column in columns)], 1)
