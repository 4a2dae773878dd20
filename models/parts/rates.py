"""How fast the parts of a backbone learn."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def layered(
    backbone: nn.Module, blocks: Sequence[nn.Module], rate: float, decay: float
) -> list[dict[str, Any]]:
    """Its weights by blocks, from the last, which learns at `rate`, to the first, each at `decay` of the one behind.

    What lies in no block learns as the weights do that the backbone has before it, and what is before all as the
    first block. Layer-wise decay (Howard and Ruder, 2018; Clark et al., 2020).
    """
    depths: dict[int, int] = {}
    for depth, block in enumerate(reversed(blocks)):
        for weight in block.parameters():
            depths.setdefault(id(weight), depth)
    depth = max(0, len(blocks) - 1)
    found: dict[int, list[nn.Parameter]] = {}
    for weight in backbone.parameters():
        depth = depths.get(id(weight), depth)
        found.setdefault(depth, []).append(weight)
    return [{"params": found[depth], "lr": rate * decay**depth} for depth in sorted(found)]
