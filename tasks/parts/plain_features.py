"""Features of inputs that nobody learned: pixels, runs of tokens, numbers as they are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.parts.columns import Columns, Dense, Ragged

GRID = 8
"""Places of an image in both directions, each with the mean of its pixels."""
STEPS = 16
"""Places of a series, each with the mean of its steps."""
LONGEST_RUN, BUCKETS = 4, 4096
_CODES = 64
_PRIMES = (1, 31_337, 715_827_883, 198_491_317)


def plain_features(columns: Columns) -> Tensor:
    """What the inputs of each example say by themselves (N, D), float64."""
    found = [_of_dense(c) if isinstance(c, Dense) else _of_ragged(c) for c in columns.inputs]
    return torch.cat([each.double() for each in found], 1)


def _of_dense(column: Dense) -> Tensor:
    values = column.values
    if values.dtype == torch.uint8 and values.dim() >= 4:  # images, or clips of them
        return F.adaptive_avg_pool2d(values.flatten(1, -3).float(), GRID).flatten(1)
    flat = values.reshape(len(values), -1)
    if values.dtype.is_floating_point:
        return flat
    return F.one_hot(flat.clamp(0, _CODES - 1), _CODES).flatten(1)


def _of_ragged(column: Ragged) -> Tensor:
    if column.values.dtype.is_floating_point:
        return torch.stack([_shape(column.take(place)[0][0]) for place in _each(column)])
    return _runs(column)


def _each(column: Ragged) -> Tensor:
    return torch.arange(len(column))[:, None]


def _shape(series: Tensor) -> Tensor:
    """Mean, deviation and course of a series (T, C), of whatever length."""
    course = F.adaptive_avg_pool1d(series.T[None].float(), STEPS)[0]
    std, mean = torch.std_mean(series.float(), dim=0, correction=0)
    return torch.cat([mean, std, course.flatten()])


def _runs(column: Ragged) -> Tensor:
    """How often runs of up to 4 tokens occur in each text, hashed, of length 1 (N, buckets)."""
    tokens, counts = column.values.long(), torch.zeros(len(column), BUCKETS)
    text = torch.arange(len(column)).repeat_interleave(column.lengths)
    run = torch.zeros_like(tokens)
    for length in range(1, min(LONGEST_RUN, len(tokens)) + 1):
        last = len(tokens) - length + 1
        run = run[:last] + (tokens[length - 1 :] + 1) * _PRIMES[length - 1]
        within = text[:last] == text[length - 1 :]
        places = (run * _PRIMES[-1] + length) % (2**31 - 1) % BUCKETS
        counts.index_put_((text[:last][within], places[within]), torch.ones(()), accumulate=True)
    return F.normalize(counts.log1p())
