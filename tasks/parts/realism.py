"""How like real images made ones are: distances between distributions of features that need no training."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.parts.images import decode_all

SIDE = 32
"""Of the squares that features are taken from, whatever the side of the images."""
CELLS = 4
"""Rows and columns of cells."""
DIRECTIONS = 4
FEATURES = CELLS**2 * (DIRECTIONS + 3)
NEIGHBOURS = 3
FLOOR = 0.02
"""Least spread by which features are divided: less of it is noise of cameras and of JPEG."""
KINDS = (DIRECTIONS, 1, 2)
"""Maps of features of one kind, which share their units: edges, light, colours."""
EDGES = 4.0
"""What gradients, of steps of 0 to 1 per pixel, are multiplied with to weigh about as much as lights do."""
MOST = 2_000
"""Images of either kind, at most, whose distances from each other are measured."""

Features = NDArray[np.float64]

REALISM_METRICS = {
    "frechet_distance": "Fréchet distance (Heusel et al., 2017) between the features of images made for the "
    "split's labels and of its real images: edges of four directions and colours in 16 cells, in units of the real "
    "ones' spread. 0 is best; 1 is as far as what always has the mean of the features. Few images make it larger.",
    "kernel_distance": "Squared distance of the same features under a cubic kernel (Binkowski et al., 2018), "
    "which few images make noisier, and not larger; it may be below 0.",
    "precision": "Share of the made images that lie among the real ones: within the distance from one of them to "
    "its third neighbour (Kynkäänniemi et al., 2019).",
    "recall": "Share of the real images that lie among the made ones, in the same way: low where only a part of what "
    "there is gets made.",
}


def look_closely(images: pl.Series) -> Tensor:
    """Features (N, FEATURES) of a column of encoded images. Raises Invalid, at `row`, for what is no image."""
    return features(decode_all(images, SIDE, 3))


def features(pixels: Tensor) -> Tensor:
    """Edges by direction (Dalal and Triggs, 2005), light and colours: (N, 3, SIDE, SIDE) uint8 to (N, FEATURES)."""
    red, green, blue = (pixels.float() / 255).unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = torch.stack([light, red - light, blue - light], 1)
    edges = _edges(light) * EDGES
    cells = F.avg_pool2d(torch.cat([edges, colours], 1), SIDE // CELLS)
    return cells.flatten(1)


def _edges(light: Tensor) -> Tensor:
    """How steep it is in each direction: lights (N, S, S) to (N, DIRECTIONS, S, S)."""
    around = F.pad(light[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]) / 2
    down = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]) / 2
    steep = torch.hypot(across, down)
    turn = torch.atan2(down, across) / torch.pi * DIRECTIONS % DIRECTIONS
    # Each gradient is shared among the two directions that are nearest to its own.
    nearest = torch.arange(DIRECTIONS).view(-1, 1, 1)
    away = (turn[:, None] - nearest).abs()
    return steep[:, None] * (1 - away.minimum(DIRECTIONS - away)).clamp(min=0)


def compare(made: Features, real: Features) -> dict[str, float]:
    """Every metric of `REALISM_METRICS`, from features (N, F) of made images and (M, F) of real ones."""
    made, real = in_spreads(made, real)
    some, others = made[:MOST], real[:MOST]
    return {
        "frechet_distance": frechet_distance(made, real) / max(1.0, float(real.var(0).sum())),
        "kernel_distance": kernel_distance(some, others),
        "precision": share_among(some, others),
        "recall": share_among(others, some),
    }


def in_spreads(made: Features, real: Features) -> tuple[Features, Features]:
    """Both from the real ones' mean on, in units of their spread: one unit for all features of a kind."""
    kinds = np.split(real.var(0), np.cumsum(KINDS)[:-1] * CELLS**2)
    units = np.concatenate([np.full(len(kind), np.sqrt(kind.mean())) for kind in kinds]).clip(FLOOR)
    mean = real.mean(0)
    return (made - mean) / units, (real - mean) / units


def frechet_distance(one: Features, other: Features) -> float:
    """Squared Fréchet distance of two normal distributions with the moments of samples (N, F) and (M, F)."""
    apart = float(((one.mean(0) - other.mean(0)) ** 2).sum())
    first, second = (np.cov(rows.T, ddof=0) for rows in (one, other))
    root = _root(first)
    common = np.linalg.eigvalsh(root @ second @ root).clip(0)
    return max(0.0, apart + float(np.trace(first) + np.trace(second) - 2 * np.sqrt(common).sum()))


def _root(matrix: Features) -> Features:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    found: Features = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return found


def kernel_distance(one: Features, other: Features) -> float:
    """Squared maximum mean discrepancy, without bias, under (x y / F + 1) ** 3; 0 where there are too few for it."""
    if min(len(one), len(other)) < 2:
        return 0.0
    within = sum(_mean_of_pairs(_kernel(rows, rows)) for rows in (one, other))
    return float(within - 2 * _kernel(one, other).mean())


def _kernel(one: Features, other: Features) -> Features:
    found: Features = (one @ other.T / one.shape[1] + 1) ** 3
    return found


def _mean_of_pairs(kernel: Features) -> float:
    size = len(kernel)
    return float(kernel.sum() - np.trace(kernel)) / (size * (size - 1))


def share_among(some: Features, others: Features) -> float:
    """Share of rows (N, F) that are no further from one of (M, F) than its neighbours are."""
    reach = np.sort(_distances(others, others), 1)[:, min(NEIGHBOURS, len(others) - 1)]
    return float((_distances(some, others) <= reach).any(1).mean())


def nearest(some: Features, others: Features, *, but_itself: bool = False) -> NDArray[np.int64]:
    """Which of (M, F) is nearest to each of (N, F), or the nearest besides itself: (N,)."""
    distances = _distances(some, others)
    if but_itself:
        np.fill_diagonal(distances, np.inf)
    found: NDArray[np.int64] = distances.argmin(1)
    return found


def _distances(some: Features, others: Features) -> Features:
    """Squared, (N, M)."""
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1)
    found: Features = (squares - 2 * some @ others.T).clip(0)
    return found


def agreement(made: Features, real: Features, labels: Sequence[str]) -> dict[str, float]:
    """How often the nearest real image has the label that was asked for; and where it is asked for real images."""
    made, real = (rows[:MOST] for rows in in_spreads(made, real))
    names = np.array(labels[:MOST])
    return {
        "made": float((names[nearest(made, real)] == names[: len(made)]).mean()),
        "real": float((names[nearest(real, real, but_itself=True)] == names).mean()),
    }
