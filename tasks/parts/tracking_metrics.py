"""What tracks are worth: CLEAR MOT (Bernardin and Stiefelhagen, 2008) and IDF1 (Ristani et al., 2016)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from tasks.parts.tracks import Numbers, match, overlap

OVERLAP = 0.5
"""What boxes must overlap by to be of one object."""

TRACKING_METRICS: Mapping[str, str] = {
    "mota": "1 less the share of misses, false boxes and switched identities in all boxes; it may be below 0.",
    "idf1": "F1 of boxes that carry the one identity which fits their object best over the whole clip.",
    "id_switches": "How often an object goes on under another identity.",
    "precision": "The share of the boxes found that are of an object.",
    "recall": "The share of the objects' boxes that are found.",
    "label_accuracy": "The share of the objects found that have the right label.",
}


class Scene(NamedTuple):
    """The objects of a frame: identities, boxes (N, 4), labels, and which ones are not to be judged by."""

    ids: Sequence[int]
    boxes: Numbers
    labels: Sequence[str]
    ignored: Sequence[bool]


class Tally(NamedTuple):
    """What is counted over the frames of a clip; tallies add up, field by field."""

    truths: int = 0
    found: int = 0
    matched: int = 0
    switches: int = 0
    labelled: int = 0
    """Matches of the right label."""
    identified: int = 0
    """Boxes found under the identity that fits their object best."""

    def metrics(self) -> dict[str, float]:
        """A value for each of `TRACKING_METRICS`; shares of nothing are 1 where nothing is to be found."""
        errors = self.truths + self.found - 2 * self.matched + self.switches
        share = lambda part, whole: part / whole if whole else float(not self.truths)  # noqa: E731
        return {
            "mota": 1 - errors / max(1, self.truths),
            "idf1": share(2 * self.identified, self.truths + self.found),
            "id_switches": float(self.switches),
            "precision": share(self.matched, self.found),
            "recall": share(self.matched, self.truths),
            "label_accuracy": share(self.labelled, self.matched),
        }


def total(tallies: Iterable[Tally]) -> Tally:
    """All clips as one; an identity means nothing beyond its clip."""
    columns = zip(*tallies, strict=True)
    return Tally(*map(sum, columns))


def tally(truth: Sequence[Scene], found: Sequence[Scene]) -> Tally:
    """Counts of one clip, frame by frame, by overlap alone: labels are counted, and change no match.

    A box on an object that is not to be judged by is neither right nor wrong.
    """
    matched = switches = labelled = truths = boxes = 0
    followed: dict[int, int] = {}
    together, lengths, its_lengths = (Counter[tuple[int, int]](), Counter[int](), Counter[int]())
    for there, all_seen in zip(truth, found, strict=True):
        seen, known = _judged(there, all_seen)
        truths, boxes = truths + len(known.ids), boxes + len(seen.ids)
        lengths.update(known.ids)
        its_lengths.update(seen.ids)
        shared = overlap(known.boxes, seen.boxes)
        together.update(
            (known.ids[row], seen.ids[column]) for row, column in np.argwhere(shared >= OVERLAP)
        )
        for row, column in _matches(known, seen, shared, followed):
            one, other = known.ids[row], seen.ids[column]
            switches += followed.get(one, other) != other
            followed[one] = other
            labelled += known.labels[row] == seen.labels[column]
            matched += 1
    return Tally(truths, boxes, matched, switches, labelled, _identified(together))


def of_label(scenes: Iterable[Scene], label: str) -> list[Scene]:
    """The same frames with nothing but objects of one label, and what is not to be judged by."""
    return [
        _part(scene, [n for n, of in enumerate(scene.labels) if of == label or scene.ignored[n]])
        for scene in scenes
    ]


def _judged(truth: Scene, found: Scene) -> tuple[Scene, Scene]:
    """What was found, less what is on ignored objects, and the objects that are to be found."""
    hidden = {
        column for row, column in match(truth.boxes, found.boxes, OVERLAP) if truth.ignored[row]
    }
    seen = _part(found, [n for n in range(len(found.ids)) if n not in hidden])
    return seen, _part(truth, [n for n, ignored in enumerate(truth.ignored) if not ignored])


def _part(scene: Scene, rows: list[int]) -> Scene:
    return Scene(
        [scene.ids[n] for n in rows],
        scene.boxes[rows],
        [scene.labels[n] for n in rows],
        [scene.ignored[n] for n in rows],
    )


def _matches(
    truth: Scene, found: Scene, shared: Numbers, followed: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Objects and boxes: who was followed by a track is so still if that is possible, the rest as well as can be."""
    at = {number: column for column, number in enumerate(found.ids)}
    kept = [
        (row, at[followed[number]])
        for row, number in enumerate(truth.ids)
        if followed.get(number) in at and shared[row, at[followed[number]]] >= OVERLAP
    ]
    # Two objects may have been followed by one track, at different times.
    taken = {column: (row, column) for row, column in reversed(kept)}
    kept = list(taken.values())
    rows = [row for row in range(len(truth.ids)) if row not in {r for r, _ in kept}]
    columns = [column for column in range(len(found.ids)) if column not in taken]
    rest = match(truth.boxes[rows], found.boxes[columns], OVERLAP)
    return kept + [(rows[row], columns[column]) for row, column in rest]


def _identified(together: Mapping[tuple[int, int], int]) -> int:
    """The boxes that objects and tracks have in common, each object paired with one track at the most."""
    if not together:
        return 0
    ids, its_ids = ({pair[side]: None for pair in together} for side in (0, 1))
    rows, columns = ({number: n for n, number in enumerate(of)} for of in (ids, its_ids))
    counts = np.zeros((len(rows), len(columns)))
    for (one, other), count in together.items():
        counts[rows[one], columns[other]] = count
    return int(counts[linear_sum_assignment(counts, maximize=True)].sum())
