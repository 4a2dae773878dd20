"""From what was found in each frame to what moves through all of them: motion, matching, identity."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from models.parts.boxes import centred, cornered, overlaps
from models.parts.options import Option

Numbers = NDArray[np.float64]
Pairs = list[tuple[int, int]]

SURE_OVERLAP = 0.5
"""What a doubtful detection must overlap a track by: more than a sure one, as it may be anything."""
TWICE = 0.8
"""Detections that overlap by more than this are one object, whatever their labels."""
_OF_PLACE, _OF_SPEED = 1 / 20, 1 / 160
"""Deviations of a measured place and of a change of speed, as shares of an object's size (Wojke et al., 2017)."""


class Seen(NamedTuple):
    """What was found in a frame: boxes (N, 4) in pixels, their scores (N,) and labels."""

    boxes: Numbers
    scores: Numbers
    labels: Sequence[str]


class Sighting(NamedTuple):
    """A tracked object in one frame."""

    id: int
    label: str
    score: float
    box: list[float]


class Association(Option):
    """How detections of one frame after the other become tracks."""

    min_hits: int = Field(
        3, ge=1, le=100, description="Frames in a row that a new track must be seen in to count."
    )
    fill: int = Field(
        20,
        ge=0,
        le=1_000,
        description="Frames that a track may lack and are filled in between what was seen before and after; "
        "0: only what was seen is told.",
    )

    @abstractmethod
    def bounds(self) -> "Bounds":
        """What it takes to begin a track and to continue one."""


class Bounds(NamedTuple):
    """Scores that may begin a track, and that may at least continue one; overlap and patience of a match."""

    begin: float
    least: float
    iou: float
    max_age: int


class Sort(Association):
    """Constant velocity, and the best matches by overlap (SORT; Bewley et al., 2016)."""

    name: Literal["sort"] = "sort"
    threshold: float = Field(
        0.3, ge=0, le=1, description="Detections of a lower score are not looked at."
    )
    iou: float = Field(0.3, gt=0, le=1, description="Overlap of a match at the least.")
    max_age: int = Field(
        1, ge=0, le=1_000, description="Frames a track may go unseen in before it ends."
    )

    def bounds(self) -> Bounds:
        return Bounds(self.threshold, self.threshold, self.iou, self.max_age)


class Byte(Association):
    """SORT that continues tracks by doubtful detections, too, after the sure ones (ByteTrack; Zhang et al., 2022)."""

    name: Literal["byte"] = "byte"
    high: float = Field(
        0.4, ge=0, le=1, description="The score of sure detections, which may begin a track."
    )
    low: float = Field(
        0.1, ge=0, le=1, description="The score of doubtful detections, which may continue one."
    )
    iou: float = Field(0.2, gt=0, le=1, description="Overlap of a sure match at the least.")
    max_age: int = Field(
        30, ge=0, le=1_000, description="Frames a track may go unseen in before it ends."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low may not be above high")
        return self

    def bounds(self) -> Bounds:
        return Bounds(self.high, self.low, self.iou, self.max_age)


def follow(frames: Sequence[Seen], how: Association) -> list[list[Sighting]]:
    """The objects of a whole clip in each of its frames; ids count from 1 in the order objects appear.

    A track that counts does so from where it began. Where a clip is shorter than `min_hits`, all of it will do.
    """
    crowd = _Crowd(how)
    for place, seen in enumerate(frames):
        crowd.see(place, _once(seen, crowd.bounds.least))
    needed = min(how.min_hits, len(frames))
    found: list[list[Sighting]] = [[] for _ in frames]
    lasting = [track for track in crowd.all if len(track.places) >= needed]
    for number, track in enumerate(lasting, 1):
        for place, score, box in track.told(how.fill):
            found[place].append(Sighting(number, track.label, score, box.tolist()))
    return found


class _Track:
    """Where an object was seen, and as what."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.scores: list[float] = []
        self.boxes: list[Numbers] = []
        self._votes: defaultdict[str, float] = defaultdict(float)

    def add(self, place: int, score: float, label: str, box: Numbers) -> None:
        self.places.append(place)
        self.scores.append(score)
        self.boxes.append(box)
        self._votes[label] += score

    @property
    def label(self) -> str:
        """What it was taken for most often, and most surely."""
        return max(self._votes, key=lambda label: self._votes[label])

    def told(self, fill: int) -> Iterator[tuple[int, float, Numbers]]:
        """Frame, score and box, in order, short gaps filled in on straight lines."""
        told = list(zip(self.places, self.scores, self.boxes, strict=True))
        for (before, score, box), (after, next_score, next_box) in pairwise(told):
            yield before, score, box
            gap = after - before
            for step in range(1, gap) if gap - 1 <= fill else ():
                share = step / gap
                between = (1 - share) * box + share * next_box
                yield before + step, (1 - share) * score + share * next_score, between
        yield told[-1]


class _Crowd:
    """The tracks of a clip: those that go on, row by row of their motion, and all there were."""

    def __init__(self, how: Association) -> None:
        self.bounds, self._min_hits = how.bounds(), how.min_hits
        self.all: list[_Track] = []
        self._going: list[_Track] = []
        self._motion = Motion()

    def see(self, place: int, seen: Seen) -> None:
        """Continue tracks with what was found in the next frame, begin new ones and end old ones."""
        self._motion.advance()
        sure = seen.scores >= self.bounds.begin
        tracks, found = range(len(self._going)), np.flatnonzero(sure).tolist()
        pairs = self._pairs(tracks, seen, found, self.bounds.iou)
        missed = _without(tracks, [row for row, _ in pairs])
        # Who was missed before is not found again by what may be anything.
        recent = [row for row in missed if self._going[row].places[-1] == place - 1]
        doubtful = np.flatnonzero(~sure).tolist()
        pairs += self._pairs(recent, seen, doubtful, max(SURE_OVERLAP, self.bounds.iou))
        self._continue(place, seen, pairs)
        self._end(place)
        self._begin(place, seen, _without(found, [number for _, number in pairs]))

    def _pairs(self, rows: Sequence[int], seen: Seen, numbers: Sequence[int], iou: float) -> Pairs:
        """Tracks and the detections that they go on with."""
        expected = self._motion.boxes[list(rows)]
        found = match(expected, seen.boxes[list(numbers)], iou)
        return [(rows[row], numbers[number]) for row, number in found]

    def _continue(self, place: int, seen: Seen, pairs: Pairs) -> None:
        rows, numbers = [row for row, _ in pairs], [number for _, number in pairs]
        self._motion.correct(rows, seen.boxes[numbers])
        boxes = self._motion.boxes
        for row, number in pairs:
            score, label = float(seen.scores[number]), seen.labels[number]
            self._going[row].add(place, score, label, boxes[row])

    def _end(self, place: int) -> None:
        """Leave tracks behind that went unseen for too long, and at once those that hardly began."""
        stays = [
            track.places[-1] == place
            or (
                len(track.places) >= self._min_hits
                and place - track.places[-1] <= self.bounds.max_age
            )
            for track in self._going
        ]
        self._going = [track for track, stay in zip(self._going, stays, strict=True) if stay]
        self._motion.keep(np.array(stays, bool))

    def _begin(self, place: int, seen: Seen, numbers: Sequence[int]) -> None:
        for number in numbers:
            track = _Track()
            track.add(place, float(seen.scores[number]), seen.labels[number], seen.boxes[number])
            self.all.append(track)
            self._going.append(track)
        self._motion.add(seen.boxes[list(numbers)])


class Motion:
    """Kalman filters of objects that move and grow at a constant speed (Kalman, 1960).

    Centre, width and height of an object are filtered each by itself: nothing of what is noise in one is in
    another. `place` and `speed` are (N, 4), `spread` (N, 4, 3) their variances: of place, both, and speed.
    """

    def __init__(self) -> None:
        self.place, self.speed = np.empty((0, 4)), np.empty((0, 4))
        self.spread = np.empty((0, 4, 3))

    @property
    def boxes(self) -> Numbers:
        """Where the objects are thought to be: corners (N, 4)."""
        sized = np.concatenate([self.place[:, :2], self.place[:, 2:].clip(min=1e-3)], 1)
        corners: Numbers = cornered(torch.from_numpy(sized)).numpy()
        return corners

    def add(self, boxes: Numbers) -> None:
        """New objects (N, 4), of whose speed nothing is known."""
        place = centred(torch.from_numpy(boxes)).numpy()
        size = _size(place)
        spread = np.zeros((len(boxes), 4, 3))
        spread[..., 0], spread[..., 2] = (2 * _OF_PLACE * size) ** 2, (10 * _OF_SPEED * size) ** 2
        self.place = np.concatenate([self.place, place])
        self.speed = np.concatenate([self.speed, np.zeros_like(place)])
        self.spread = np.concatenate([self.spread, spread])

    def advance(self) -> None:
        """On to the next frame."""
        size = _size(self.place)
        self.place = self.place + self.speed
        place, both, speed = np.moveaxis(self.spread, -1, 0)
        grown = place + 2 * both + speed + (_OF_PLACE * size) ** 2
        self.spread = np.stack([grown, both + speed, speed + (_OF_SPEED * size) ** 2], -1)

    def correct(self, rows: Sequence[int], boxes: Numbers) -> None:
        """Take in where the objects at `rows` were found: boxes (n, 4)."""
        here = list(rows)
        measured = centred(torch.from_numpy(boxes)).numpy()
        place, both, speed = np.moveaxis(self.spread[here], -1, 0)
        trust = place / (place + (_OF_PLACE * _size(self.place[here])) ** 2)
        # How far a surprise in its place tells of the speed.
        share = both / (place + (_OF_PLACE * _size(self.place[here])) ** 2)
        surprise = measured - self.place[here]
        self.place[here] += trust * surprise
        self.speed[here] += share * surprise
        self.spread[here] = np.stack(
            [(1 - trust) * place, (1 - trust) * both, speed - share * both], -1
        )

    def keep(self, stays: NDArray[np.bool_]) -> None:
        """Only the objects (N,) that stay."""
        self.place, self.speed, self.spread = (
            part[stays] for part in (self.place, self.speed, self.spread)
        )


def match(one: Numbers, other: Numbers, iou: float) -> Pairs:
    """Which boxes (N, 4) and (M, 4) are one and the same, overlapping by `iou` or more, as much as possible in all."""
    if not len(one) or not len(other):
        return []
    shared = overlap(one, other)
    shared[shared < iou] = 0
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if shared[r, c] > 0]


def overlap(one: Numbers, other: Numbers) -> Numbers:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4)."""
    first, second = torch.from_numpy(one)[:, None], torch.from_numpy(other)[None]
    shared: Numbers = overlaps(first, second).numpy()
    return shared


def _once(seen: Seen, least: float) -> Seen:
    """The detections worth a look, the surest of those that are one object."""
    order = [
        number for number in np.argsort(-seen.scores, kind="stable") if seen.scores[number] >= least
    ]
    shared, kept = overlap(seen.boxes[order], seen.boxes[order]), list[int]()
    for place in range(len(order)):
        if not any(shared[place, better] > TWICE for better in kept):
            kept.append(place)
    numbers = [int(order[place]) for place in kept]
    return Seen(seen.boxes[numbers], seen.scores[numbers], [seen.labels[n] for n in numbers])


def _size(place: Numbers) -> Numbers:
    """The side (N, 1) of a square as large as each box, in pixels."""
    size: Numbers = np.sqrt(place[:, 2:].clip(min=1).prod(1, keepdims=True))
    return size


def _without(these: Sequence[int], those: Sequence[int]) -> list[int]:
    gone = set(those)
    return [number for number in these if number not in gone]
