"""Sequences of tags that depend on their neighbours: linear chains (Lafferty et al., 2001), in log space.

A chain is given by its potentials (B, W, L, L): how well tag j suits word w when tag i comes before it; of the
first word all rows are alike. `counts` (B,) says how many words there are; what follows them has no effect.
"""

import torch
from torch import Tensor

from models.parts.pooling import inside


def log_likelihood(potentials: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
    """How likely all the tags (B, W) of each chain are: (B,)."""
    before = torch.cat([torch.zeros_like(tags[:, :1]), tags[:, :-1]], 1)
    rows = potentials.gather(2, before[:, :, None, None].expand(-1, -1, 1, potentials.shape[-1]))
    steps = rows[:, :, 0].gather(2, tags[:, :, None])[:, :, 0]
    chosen = (steps * inside(tags, counts)).sum(1)
    return chosen - _forwards(potentials, counts)[-1].logsumexp(-1)


def best(potentials: Tensor, counts: Tensor) -> Tensor:
    """The most likely tags of each chain (B, W), after Viterbi (1967); behind its words the last tag again."""
    value, pointers = potentials[:, 0, 0], []
    stay = torch.arange(value.shape[-1], device=value.device).expand_as(value)
    for step in range(1, potentials.shape[1]):
        larger, pointer = (value[:, :, None] + potentials[:, step]).max(1)
        here = (step < counts)[:, None]
        value = torch.where(here, larger, value)
        pointers.append(torch.where(here, pointer, stay))
    tags = [value.argmax(-1)]
    for pointer in reversed(pointers):
        tags.append(pointer.gather(1, tags[-1][:, None])[:, 0])
    return torch.stack(tags[::-1], 1)


def marginals(potentials: Tensor, counts: Tensor) -> Tensor:
    """How likely each tag is at each word, whatever the others are: (B, W, L)."""
    forwards = _forwards(potentials, counts)
    after, found = torch.zeros_like(forwards[-1]), []
    for step in reversed(range(potentials.shape[1])):
        found.append((forwards[step] + after).softmax(-1))
        before = (potentials[:, step] + after[:, None]).logsumexp(-1)
        after = torch.where((step < counts)[:, None], before, after)
    return torch.stack(found[::-1], 1)


def _forwards(potentials: Tensor, counts: Tensor) -> list[Tensor]:
    """For each word the log of the summed weights of all ways to come to each tag (B, L)."""
    found = [potentials[:, 0, 0]]
    for step in range(1, potentials.shape[1]):
        on = (found[-1][:, :, None] + potentials[:, step]).logsumexp(1)
        found.append(torch.where((step < counts)[:, None], on, found[-1]))
    return found
