"""The metrics of tracking, on cases that can be counted by hand."""

import numpy as np
import pytest

from tasks.parts.tracking_metrics import Scene, Tally, of_label, tally, total

PLACES = {"a": 0, "b": 100, "c": 200, "d": 300}


def scene(ignored: str = "", label: str = "cat", **ids: int) -> Scene:
    """Objects at places by letters: `a=1` is object 1 at place a."""
    boxes = [(PLACES[place], 0, PLACES[place] + 10, 10) for place in ids]
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Scene(list(ids.values()), array, [label] * len(ids), [p in ignored for p in ids])


def test_what_is_found_as_it_is_has_no_errors() -> None:
    truth = [scene(a=1, b=2), scene(a=1)]
    metrics = tally(truth, [scene(a=7, b=9), scene(a=7)]).metrics()
    assert metrics == {
        "mota": 1, "idf1": 1, "id_switches": 0, "precision": 1, "recall": 1, "label_accuracy": 1,
    }  # fmt: skip


def test_misses_false_boxes_and_switches_are_counted_against_all_boxes() -> None:
    truth = [scene(a=1, b=2)] * 4
    found = [scene(a=1, b=2), scene(a=1, c=5), scene(a=3, b=2), scene(a=3, b=2)]
    counts = tally(truth, found)
    # Object 2 is missed once, there is one box at c, and object 1 goes on as 3.
    assert counts == Tally(truths=8, found=8, matched=7, switches=1, labelled=7, identified=5)
    assert counts.metrics()["mota"] == pytest.approx(1 - 3 / 8)
    assert counts.metrics()["idf1"] == pytest.approx(2 * 5 / 16)


def test_who_was_followed_is_so_still_though_another_box_fits_better() -> None:
    near = Scene([1], np.array([[2.0, 0, 12, 10]]), ["cat"], [False])
    both = Scene([2, 1], np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]]), ["cat"] * 2, [False] * 2)
    assert tally([scene(a=1)] * 2, [near, both]).switches == 0
    assert tally([scene(a=1)] * 2, [near, scene(a=2)]).switches == 1


def test_an_object_that_comes_back_under_its_own_identity_has_not_switched() -> None:
    truth = [scene(a=1)] * 3
    assert tally(truth, [scene(a=4), scene(), scene(a=4)]).switches == 0
    assert tally(truth, [scene(a=4), scene(), scene(a=5)]).switches == 1


def test_two_tracks_that_change_places_are_two_switches() -> None:
    counts = tally([scene(a=1, b=2)] * 4, [scene(a=1, b=2)] * 2 + [scene(a=2, b=1)] * 2)
    assert (counts.matched, counts.switches, counts.identified) == (8, 2, 4)


def test_boxes_that_overlap_by_less_than_half_do_not_match() -> None:
    beside = Scene([1], np.array([[4.0, 0, 14, 10]]), ["cat"], [False])
    assert tally([scene(a=1)], [beside]).metrics()["mota"] == -1


def test_what_is_not_judged_by_costs_nothing_and_brings_nothing() -> None:
    truth = [scene(ignored="b", a=1, b=2)]
    assert tally(truth, [scene(a=1, b=2)]) == tally(truth, [scene(a=1)]) == Tally(1, 1, 1, 0, 1, 1)


def test_labels_change_no_match_and_are_counted() -> None:
    metrics = tally([scene(a=1)], [scene(a=1, label="dog")]).metrics()
    assert (metrics["mota"], metrics["label_accuracy"]) == (1, 0)
    [alone] = of_label([scene(a=1, b=2)], "dog")
    assert (list(alone.ids), alone.boxes.shape) == ([], (0, 4))


def test_clips_add_up() -> None:
    one = tally([scene(a=1)], [scene(a=1)])
    other = tally([scene(a=1)], [scene()])
    assert total([one, other]).metrics()["mota"] == 0.5


def test_nothing_found_of_nothing_is_right_and_of_something_is_not() -> None:
    assert set(tally([scene()], [scene()]).metrics().values()) == {1, 0}
    assert tally([scene()], [scene()]).metrics()["mota"] == 1
    assert tally([scene(a=1)], [scene()]).metrics()["precision"] == 0
    assert tally([scene()], [scene(a=1)]).metrics()["mota"] == 0
