"""Clusters of mentions, and how well they agree: MUC, B3, CEAF-e and their mean, as the CoNLL scorer counts them."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

Cluster = Sequence[Hashable]
"""Mentions of one thing; a mention is in one cluster only."""


class Counts(NamedTuple):
    """What was right, as seen from the truth and from what was found, and of how much; sums over documents."""

    recalled: float = 0.0
    true: float = 0.0
    precise: float = 0.0
    found: float = 0.0

    def __add__(self, other: object) -> "Counts":
        assert isinstance(other, Counts)
        return Counts(*(one + its for one, its in zip(self, other, strict=True)))

    @property
    def recall(self) -> float:
        return self.recalled / self.true if self.true else 0.0

    @property
    def precision(self) -> float:
        return self.precise / self.found if self.found else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 1 where there was nothing to find, and nothing was found."""
        if not self.true and not self.found:
            return 1.0
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def muc(truth: Sequence[Cluster], found: Sequence[Cluster]) -> Counts:
    """Links: how many hold clusters together, and how many of them are missing (Vilain et al., 1995)."""
    return Counts(*_kept_links(truth, found), *_kept_links(found, truth))


def _kept_links(clusters: Sequence[Cluster], others: Sequence[Cluster]) -> tuple[int, int]:
    home = _homes(others)
    kept = links = 0
    for cluster in clusters:
        # A mention that no other cluster has is a part by itself.
        parts = {home.get(mention, ("alone", mention)) for mention in cluster}
        kept += len(cluster) - len(parts)
        links += len(cluster) - 1
    return kept, links


def b_cubed(truth: Sequence[Cluster], found: Sequence[Cluster]) -> Counts:
    """Mentions: the share of each one's cluster that is right (Bagga and Baldwin, 1998)."""
    return Counts(*_shares(truth, found), *_shares(found, truth))


def _shares(clusters: Sequence[Cluster], others: Sequence[Cluster]) -> tuple[float, int]:
    home = _homes(others)
    total = 0.0
    for cluster in clusters:
        parts = Counter(home[mention] for mention in cluster if mention in home)
        total += sum(count * count for count in parts.values()) / len(cluster)
    return total, sum(map(len, clusters))


def ceaf_e(truth: Sequence[Cluster], found: Sequence[Cluster]) -> Counts:
    """Clusters: how alike they are when each is paired with one other at the best (Luo, 2005: phi 4)."""
    if not truth or not found:
        return Counts(0.0, len(truth), 0.0, len(found))
    home = _homes(found)
    common = np.zeros((len(truth), len(found)))
    for place, cluster in enumerate(truth):
        for mention in cluster:
            if mention in home:
                common[place, home[mention]] += 1
    sizes = np.add.outer([len(c) for c in truth], [len(c) for c in found])
    alike = 2 * common / sizes
    total = float(alike[linear_sum_assignment(alike, maximize=True)].sum())
    return Counts(total, len(truth), total, len(found))


def mentions(truth: Sequence[Cluster], found: Sequence[Cluster]) -> Counts:
    """Mentions that are there, whatever their clusters."""
    marked, told = ({m for cluster in of for m in cluster} for of in (truth, found))
    both = len(marked & told)
    return Counts(both, len(marked), both, len(told))


MEASURES: Mapping[str, Callable[[Sequence[Cluster], Sequence[Cluster]], Counts]] = {
    "muc": muc,
    "b3": b_cubed,
    "ceaf_e": ceaf_e,
    "mention": mentions,
}
CLUSTER_METRICS: dict[str, str] = {
    "conll_f1": "The mean of the F1 of MUC, B3 and CEAF-e (Pradhan et al., 2012).",
    "muc_f1": "F1 of the links that hold clusters together (Vilain et al., 1995).",
    "b3_f1": "F1 of each mention's cluster (Bagga and Baldwin, 1998).",
    "ceaf_e_f1": "F1 of clusters that are paired one to one (Luo, 2005).",
    "mention_f1": "F1 of the mentions themselves, whatever their clusters; 1 where they are given.",
}


def count(truth: Sequence[Cluster], found: Sequence[Cluster]) -> dict[str, Counts]:
    """What each measure counts in one document."""
    return {name: measure(truth, found) for name, measure in MEASURES.items()}


def add(counted: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """The counts of several documents together."""
    total = dict.fromkeys(MEASURES, Counts())
    for counts in counted:
        total = {name: total[name] + counts[name] for name in MEASURES}
    return total


def metrics(counts: Mapping[str, Counts]) -> dict[str, float]:
    """Every metric of `CLUSTER_METRICS`."""
    f1 = {f"{name}_f1": found.f1 for name, found in counts.items()}
    return {"conll_f1": (f1["muc_f1"] + f1["b3_f1"] + f1["ceaf_e_f1"]) / 3, **f1}


def _homes(clusters: Sequence[Cluster]) -> dict[Hashable, int]:
    """The cluster that each mention is in."""
    return {mention: place for place, cluster in enumerate(clusters) for mention in cluster}
