"""From what pixels say of their objects' centres to objects."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from scipy.spatial import KDTree  # type: ignore[import-untyped]

from models.parts.instances import MOST_OBJECTS
from tasks.parts.masks import Mask

LEAST_HEAT = 0.25
"""How likely a centre must be."""
LEAST_PIXELS = 4
Values = NDArray[np.float32]


class Found(NamedTuple):
    """An object: its class (1 or more), how sure it is, and where it is."""

    number: int
    score: float
    mask: Mask


def objects_of(told: Values) -> list[Found]:
    """The objects of an image from what `models.parts.instances.told` says of it (5, height, width), surest first.

    Every pixel that is no background belongs to the centre nearest to where it says its own is. What is
    connected and has no likely centre has one all the same.
    """
    classes = told[0].astype(np.int64)
    rows, columns = np.nonzero(classes)
    if not len(rows):
        return []
    middles, heats = _centres(told, classes > 0)
    says = np.stack([rows + told[3, rows, columns], columns + told[4, rows, columns]], 1)
    _, owners = KDTree(middles).query(says)
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(middles) + 1))
    found = []
    for centre, (begin, end) in enumerate(pairwise(bounds.tolist())):
        places = order[begin:end]
        if len(places) >= LEAST_PIXELS:
            own = rows[places], columns[places]
            found.append(_found(told, own, classes[own], float(heats[centre])))
    return sorted(found, key=lambda one: -one.score)


def _centres(told: Values, covered: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Where centres are (n, 2) and how likely (n,), one at least in all that is connected."""
    heat = np.where(covered, told[2], 0)
    parts, count = ndimage.label(covered, np.ones((3, 3)))
    rows, columns = np.nonzero(heat > LEAST_HEAT)
    likeliest = np.argsort(-heat[rows, columns], kind="stable")[:MOST_OBJECTS]
    rows, columns = rows[likeliest], columns[likeliest]
    heats = heat[rows, columns]
    missing = np.setdiff1d(np.arange(1, count + 1), parts[rows, columns])[:MOST_OBJECTS]
    middles = np.stack([rows, columns], 1).astype(np.float32)
    if len(missing):
        more = np.array(ndimage.center_of_mass(covered, parts, missing), np.float32)
        middles = np.concatenate([middles, more.reshape(-1, 2)])
        best = np.array(ndimage.maximum(heat, parts, missing), np.float32)
        heats = np.concatenate([heats, np.maximum(best, LEAST_HEAT / 2)])
    return middles, heats


def _found(
    told: Values,
    own: tuple[NDArray[np.int64], NDArray[np.int64]],
    classes: NDArray[np.int64],
    heat: float,
) -> Found:
    """The object of these pixels: its class is that of most of them, weighed by how sure they are."""
    sure = told[1][own]
    votes = np.bincount(classes, weights=sure)
    number = int(votes.argmax())
    mask = np.zeros(told.shape[1:], np.uint8)
    mask[own] = 1
    return Found(number, float(votes[number] / len(classes)) * heat, mask)
