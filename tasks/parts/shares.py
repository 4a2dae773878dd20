"""A share of a split's examples: nested in larger shares, even over labels, and the same for the same seed."""

import numpy as np
import polars as pl

from tasks.parts.splits import Places


def drawn(examples: int, labels: pl.Series | None, share: float, seed: int) -> Places:
    """The rows, in their order, of a share of so many examples; one of every label at the least.

    A smaller share for the same seed is part of a larger one. `labels` are texts, or lists of them.
    """
    order, least = np.random.default_rng(seed).permutation(examples), 1
    if labels is not None:
        order, least = _evenly(order, labels)
    return np.sort(order[: size_of(share, examples, least)])


def latest(series: pl.Series, share: float) -> Places:
    """The rows, in their order, of the last share of each series, whose rows stand in the order of time."""
    rows = pl.DataFrame({"series": series}).with_row_index("row")
    kept = rows.group_by("series", maintain_order=True).agg(
        pl.col("row").tail((pl.len() * share).round().cast(pl.Int64).clip(1))
    )
    return np.sort(kept.explode("row")["row"].cast(pl.Int64).to_numpy())


def size_of(share: float, examples: int, least: int = 1) -> int:
    """How many a share of so many examples is."""
    return max(least, round(share * examples))


def _evenly(order: Places, labels: pl.Series) -> tuple[Places, int]:
    """The rows so that any beginning of them has labels as often as all, after one of each; and how many those are."""
    table = pl.DataFrame({"row": order, "label": labels[order]}).with_row_index("at")
    if isinstance(labels.dtype, pl.List):
        table = table.explode("label")
    counted = table.with_columns(
        rank=pl.int_range(pl.len()).over("label"), count=pl.len().over("label")
    )
    # An example of several labels counts as one of its rarest.
    rows = (
        counted.sort("count", maintain_order=True)
        .group_by("row", maintain_order=True)
        .agg(
            later=(pl.col("rank") > 0).all(),
            place=((pl.col("rank") + 0.5) / pl.col("count")).first(),
            at=pl.col("at").first(),
        )
        .sort("later", "place", "at")
    )
    return rows["row"].to_numpy(), int((~rows["later"]).sum())
