"""What texts look like, character by character: counts of n-grams, and the automaton that they are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.parts.options import Option

BEGIN, END = "\x02", "\x03"
"""Before the first and behind the last character of a text; texts have no control characters."""
MOST_COUNTED = 200_000
MOST_CELLS = 4_000_000
"""Contexts times characters."""


class LanguageModel(Option):
    """What is known of texts beside what is heard."""


class NoLanguageModel(LanguageModel):
    """Nothing but what is heard."""

    name: Literal["none"] = "none"


class NGrams(LanguageModel):
    """How often characters stand behind each other in the train split (Witten and Bell, 1991)."""

    name: Literal["n-gram"] = "n-gram"
    order: int = Field(
        6, ge=2, le=12, description="Characters of a run: the next one and those before it."
    )
    weight: float = Field(
        0.5,
        ge=0,
        le=5,
        description="Of the log-probabilities of texts beside those of what is heard, where a request gives none.",
    )
    bonus: float = Field(
        0.5, ge=-5, le=5, description="Added for each character, since likely texts are short."
    )


def count_ngrams(texts: Iterable[str], order: int) -> dict[str, int]:
    """How often each run of up to `order` characters occurs; of the longest runs the rarest are left out."""
    counts: Counter[str] = Counter()
    for text in texts:
        marked = BEGIN + text + END
        for end in range(2, len(marked) + 1):
            counts.update(marked[start:end] for start in range(max(0, end - order), end))
    kept = sorted(counts.items(), key=lambda found: (-found[1], len(found[0]), found[0]))
    # A run is never kept without those it begins and ends with, which occur as often and are shorter.
    return dict(kept[:MOST_COUNTED])


def automaton(
    counts: Mapping[str, int], alphabet: Sequence[str], order: int
) -> tuple[Tensor, Tensor]:
    """The context behind each character in each context, and its log-probability there, (S, 1 + V) both.

    Column 0 is the end of the text; context 0 is its beginning. Probabilities are smoothed by those behind shorter
    contexts (Witten and Bell, 1991).
    """
    columns = {END: 0, **{character: n for n, character in enumerate(alphabet, start=1)}}
    behind = _behind(counts, columns)
    most = max(2, MOST_CELLS // len(columns))
    kept = sorted(behind, key=lambda context: (-sum(behind[context].values()), len(context)))[:most]
    contexts = sorted({BEGIN, "", *kept}, key=lambda context: (context != BEGIN, len(context)))
    places = {context: n for n, context in enumerate(contexts)}
    after = torch.zeros(len(contexts), len(columns), dtype=torch.long)
    chances: NDArray[np.float64] = np.full((len(contexts), len(columns)), 1 / len(columns))
    for context in sorted(contexts, key=len):
        row = places[context]
        if context:
            chances[row] = chances[_longest(context[1:], places)]
        found = behind.get(context, {})
        seen = np.zeros(len(columns))
        for column, count in found.items():
            seen[column] = count
        chances[row] = (seen + len(found) * chances[row]) / max(1, seen.sum() + len(found))
        if not found:
            chances[row] = chances[_longest(context[1:], places)] if context else 1 / len(columns)
        for character, column in columns.items():
            if column:
                after[row, column] = _longest((context + character)[-(order - 1) :], places)
    return after, torch.from_numpy(np.log(chances)).float()


def _behind(counts: Mapping[str, int], columns: Mapping[str, int]) -> dict[str, dict[int, int]]:
    """How often each column's character stands behind each context."""
    behind: dict[str, dict[int, int]] = {}
    for run, count in counts.items():
        if run[-1] in columns:
            behind.setdefault(run[:-1], {})[columns[run[-1]]] = count
    return behind


def _longest(context: str, places: Mapping[str, int]) -> int:
    """The place of the longest end of a context that has one; the empty one has."""
    while context not in places:
        context = context[1:]
    return places[context]
