"""Rankings: how far up documents stand that answer a query."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Gains = Mapping[str, float]
"""How well each document answers a query, by its id; all others do not."""
RANKING_METRICS: dict[str, str] = {
    "ndcg_at_10": "Gains of the first 10 hits, discounted by the logarithm of their rank, beside the best "
    "possible (Järvelin and Kekäläinen, 2002).",
    "mrr_at_10": "One over the rank of the first hit that is relevant, 0 if it is none of the first 10.",
    "recall_at_100": "Share of the relevant documents that are among the first 100 hits.",
}
FIRST, ALL = 10, 100
WORST = 20


class Ranked(NamedTuple):
    """Ids of documents as they were found, best first, and what would have been right."""

    found: Sequence[str]
    gains: Gains

    def ndcg(self) -> float:
        ideal = _discounted(sorted(self.gains.values(), reverse=True))
        return _discounted([self.gains.get(id, 0.0) for id in self.found]) / ideal if ideal else 0.0

    def reciprocal_rank(self) -> float:
        places = (n for n, id in enumerate(self.found[:FIRST], 1) if self.gains.get(id, 0) > 0)
        return 1 / next(places, math.inf)

    def recall(self) -> float:
        relevant = {id for id, gain in self.gains.items() if gain > 0}
        return len(relevant & set(self.found[:ALL])) / len(relevant) if relevant else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:FIRST]))


def score_rankings(rankings: Sequence[Ranked]) -> dict[str, float]:
    """Every metric of `RANKING_METRICS`, averaged over queries."""
    count = max(1, len(rankings))
    return {
        "ndcg_at_10": sum(ranked.ndcg() for ranked in rankings) / count,
        "mrr_at_10": sum(ranked.reciprocal_rank() for ranked in rankings) / count,
        "recall_at_100": sum(ranked.recall() for ranked in rankings) / count,
    }


def evaluate_rankings(queries: Sequence[str], rankings: Sequence[Ranked]) -> dict[str, Any]:
    """The metrics, how many documents of each gain were found, and the queries that were answered worst."""
    worst = sorted(range(len(rankings)), key=lambda row: rankings[row].ndcg())[:WORST]
    return {
        **score_rankings(rankings),
        "queries": len(rankings),
        "per_gain": _per_gain(rankings),
        "worst": [
            {
                "row": row,
                "query": queries[row][:200],
                "ndcg_at_10": rankings[row].ndcg(),
                "found": list(rankings[row].found[:FIRST]),
                "relevant": dict(list(rankings[row].gains.items())[:ALL]),
            }
            for row in worst
            if rankings[row].ndcg() < 1
        ],
    }


def _per_gain(rankings: Sequence[Ranked]) -> dict[str, dict[str, float]]:
    counts: dict[float, list[int]] = {}
    for found, gains in rankings:
        places = {id: place for place, id in enumerate(found)}
        for id, gain in gains.items():
            count = counts.setdefault(gain, [0, 0, 0])
            place = places.get(id, ALL)
            count[0] += 1
            count[1] += place < FIRST
            count[2] += place < ALL
    return {
        f"{gain:g}": {"documents": of, "in_first_10": ten / of, "in_first_100": hundred / of}
        for gain, (of, ten, hundred) in sorted(counts.items(), reverse=True)
    }
