"""Boxes as tensors (..., 4) of left, top, right and bottom: how much they overlap, and which of many to keep."""

import torch
from torch import Tensor


def areas(boxes: Tensor) -> Tensor:
    """(...): of boxes (..., 4); 0 where a side is not right of its other."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (...) of boxes (..., 4), which broadcast; 0 for boxes without area."""
    shared, union, _ = _shared(one, other)
    return shared / union.clamp(min=1e-9)


def generalised_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Overlaps from -1 to 1 (...) that also tell how far apart boxes are (Rezatofighi et al., 2019)."""
    shared, union, around = _shared(one, other)
    return shared / union.clamp(min=1e-9) - (around - union) / around.clamp(min=1e-9)


def _shared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, of union, and of the box around both."""
    lower = torch.maximum(one[..., :2], other[..., :2])
    upper = torch.minimum(one[..., 2:], other[..., 2:])
    shared = (upper - lower).clamp(min=0).prod(-1)
    outer = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(
        one[..., :2], other[..., :2]
    )
    return shared, areas(one) + areas(other) - shared, outer.clamp(min=0).prod(-1)


def suppressed(boxes: Tensor, classes: Tensor, most: float) -> Tensor:
    """Which of boxes (B, K, 4), the best first, overlap a better one of their class by more than `most`: (B, K).

    Greedy, as ever: what is suppressed itself suppresses nothing. All images of a batch in K steps.
    """
    alike = classes[:, :, None] == classes[:, None]
    hides = alike & (overlaps(boxes[:, :, None], boxes[:, None]) > most)
    gone = torch.zeros_like(classes, dtype=torch.bool)
    later = torch.arange(boxes.shape[1], device=boxes.device)
    for place in range(boxes.shape[1] - 1):
        gone = gone | (hides[:, place] & ~gone[:, place, None] & (later > place))
    return gone


def centred(boxes: Tensor) -> Tensor:
    """Corners (..., 4) to centre, width and height (..., 4)."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def cornered(boxes: Tensor) -> Tensor:
    """Centre, width and height (..., 4) to corners (..., 4)."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
