"""Weights of a head in one that has more outputs."""

from torch import Tensor


def widened(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head's weights `old` as far as they go, with those of `new` where it has more outputs."""
    return {name: _widened(kept, new.get(name)) for name, kept in old.items()}


def _widened(old: Tensor, new: Tensor | None) -> Tensor:
    """`old` at the beginning of `new`, if that is longer in one direction; which one is up to the layer."""
    if new is None or new.dim() != old.dim():
        return old
    differ = [(mine, its) for mine, its in zip(new.shape, old.shape, strict=True) if mine != its]
    if len(differ) != 1 or differ[0][0] < differ[0][1]:
        return old
    whole = new.clone()
    whole[tuple(slice(length) for length in old.shape)] = old
    return whole
