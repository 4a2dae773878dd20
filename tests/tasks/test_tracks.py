"""Detections of one frame after the other become tracks."""

import numpy as np
import pytest

from tasks.parts.tracks import Association, Byte, Motion, Seen, Sighting, Sort, follow, match

SORT = Sort(max_age=2, min_hits=2, fill=0)


def seen(*found: tuple[float, float, float], label: str = "cat") -> Seen:
    """Squares of ten pixels at (left, top), each of a score."""
    boxes = np.array([(x, y, x + 10, y + 10) for x, y, _ in found], np.float64).reshape(-1, 4)
    return Seen(boxes, np.array([score for *_, score in found]), [label] * len(found))


def ids(tracks: list[list[Sighting]]) -> list[list[int]]:
    return [[found.id for found in frame] for frame in tracks]


def lefts(tracks: list[list[Sighting]], number: int) -> list[float]:
    return [o.box[0] for frame in tracks for o in frame if o.id == number]


def test_an_object_that_moves_keeps_its_identity() -> None:
    tracks = follow([seen((3 * t, 0, 0.9)) for t in range(8)], SORT)
    assert ids(tracks) == [[1]] * 8
    assert lefts(tracks, 1) == pytest.approx([3 * t for t in range(8)], abs=1.5)


def test_objects_that_meet_and_move_on_are_told_apart_by_their_motion() -> None:
    frames = [seen((4 * t, 0, 0.9), (44 - 4 * t, 4, 0.9)) for t in range(12)]
    tracks = follow(frames, SORT)
    assert lefts(tracks, 1)[-1] == pytest.approx(44, abs=2)
    assert lefts(tracks, 2)[-1] == pytest.approx(0, abs=2)


def test_a_track_goes_on_after_a_gap_and_ends_after_a_longer_one() -> None:
    def gap(length: int) -> list[list[int]]:
        middle = [seen()] * length
        return ids(follow([seen((0, 0, 1))] * 4 + middle + [seen((0, 0, 1))] * 3, SORT))

    assert gap(2) == [[1]] * 4 + [[]] * 2 + [[1]] * 3
    assert gap(3) == [[1]] * 4 + [[]] * 3 + [[2]] * 3


def test_short_gaps_are_filled_in_on_a_straight_line() -> None:
    frames = [seen((2 * t, 0, 0.8)) if t not in (4, 5) else seen() for t in range(9)]
    filled = follow(frames, SORT.model_copy(update={"fill": 2}))
    assert ids(filled) == [[1]] * 9
    places = lefts(filled, 1)
    assert np.diff(places[3:7]) == pytest.approx([(places[6] - places[3]) / 3] * 3)
    assert ids(follow(frames, SORT.model_copy(update={"fill": 1})))[4:6] == [[], []]


def test_what_is_seen_too_few_times_is_no_track() -> None:
    frames = [seen((0, 0, 1), (50, 0, 1)), seen((0, 0, 1)), seen((0, 0, 1))]
    assert ids(follow(frames, SORT)) == [[1]] * 3
    assert ids(follow(frames[:1], SORT)) == [[1, 2]]


def test_a_track_is_told_from_where_it_began() -> None:
    frames = [seen(), *[seen((0, 0, 1))] * 3]
    assert ids(follow(frames, Sort(min_hits=3))) == [[], [1], [1], [1]]


def test_doubtful_detections_continue_tracks_and_begin_none() -> None:
    byte = Byte(high=0.5, low=0.1, min_hits=2, max_age=0, fill=0)
    frames = [seen((0, 0, 0.9), (50, 0, 0.3))] * 2 + [seen((1, 0, 0.2))] * 2
    assert ids(follow(frames, byte)) == [[1]] * 4
    assert ids(follow(frames, Sort(threshold=0.5, min_hits=2, fill=0)))[2:] == [[], []]


def test_a_label_is_what_an_object_was_taken_for_by_all_frames_together() -> None:
    box = seen((0, 0, 0.9))
    frames = [box._replace(labels=["dog"])] + [box] * 2
    assert {o.label for frame in follow(frames, SORT) for o in frame} == {"cat"}


def test_two_labels_on_one_object_are_one_track() -> None:
    both = Seen(np.array([[0, 0, 10, 10], [0, 0, 10, 9.5]]), np.array([0.6, 0.9]), ["cat", "dog"])
    tracks = follow([both] * 3, SORT)
    assert [[o.label for o in frame] for frame in tracks] == [["dog"]] * 3


def test_a_match_is_the_best_of_all_and_not_the_first() -> None:
    one = np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float64)
    other = np.array([[3, 0, 13, 10], [-4, 0, 6, 10]], np.float64)
    assert match(one, other, 0.3) == [(0, 1), (1, 0)]
    assert match(one, other, 0.5) == [(1, 0)]
    assert match(one, other[:0], 0.5) == []


def test_a_filter_learns_a_speed_and_trusts_what_it_measures_less_and_less() -> None:
    motion = Motion()
    motion.add(np.array([[0.0, 0, 10, 10]]))
    trusts = []
    for step in range(1, 20):
        motion.advance()
        before = motion.spread[0, 0, 0]
        motion.correct([0], np.array([[2.0 * step, 0, 2.0 * step + 10, 10]]))
        trusts.append(1 - motion.spread[0, 0, 0] / before)
    assert motion.speed[0] == pytest.approx([2, 0, 0, 0], abs=0.05)
    # In balance it is the gain of a filter whose noise of place and of measuring are alike.
    assert trusts[-1] == pytest.approx(0.64, abs=0.03)
    motion.advance()
    assert motion.boxes[0] == pytest.approx([40, 0, 50, 10], abs=0.1)


@pytest.mark.parametrize("how", [Sort(), Byte()])
def test_clips_of_nothing_have_no_tracks(how: Association) -> None:
    assert follow([], how) == []
    assert follow([seen(), seen()], how) == [[], []]


def test_doubt_may_not_be_above_certainty() -> None:
    with pytest.raises(ValueError, match="low may not be above high"):
        Byte(high=0.2, low=0.3)
