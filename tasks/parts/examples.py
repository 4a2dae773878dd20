"""Examples that may be larger than memory, read piece by piece."""

from collections.abc import Iterator

import polars as pl

PIECE_BYTES = 64 << 20
"""Memory that one piece takes, about."""
_FIRST, _GROWTH = 16, 64


def height(examples: pl.LazyFrame) -> int:
    """How many there are."""
    return int(examples.select(pl.len()).collect().item())


def pieces(examples: pl.LazyFrame, first: int | None = None) -> Iterator[pl.DataFrame]:
    """All examples in their order, some at a time, `first` to begin with; one empty piece when there are none."""
    start, rows = 0, first or _FIRST
    while True:
        piece = examples.slice(start, rows).collect()
        if start == 0 or piece.height:
            yield piece
        if piece.height < rows:
            return
        start += piece.height
        # Sizes are known only of what was read, so what follows is not much more of it at once.
        fitting = int(PIECE_BYTES * piece.height / max(1, piece.estimated_size()))
        rows = max(1, min(fitting, rows * _GROWTH))
