"""The table of what it is worth to take weights over."""

from typing import Any

from store import gains
from store.tables import Job, Sweep


def compared(*, maximise: bool, shares: list[float] | None = None) -> Sweep:
    space: dict[str, Any] = {gains.FROM_SCRATCH: {"type": "choice", "choices": [False, True]}}
    if shares:
        space[gains.SHARE] = {"type": "choice", "choices": shares}
    request = {"training": {"share": 0.3}}
    return Sweep(space=space, request=request, metric="score", maximise=maximise)


def trial(scratch: bool, score: float, share: float | None = None, **more: Any) -> Job:
    chosen: dict[str, Any] = {gains.FROM_SCRATCH: scratch}
    if share is not None:
        chosen[gains.SHARE] = share
    found = {"validation": {"score": score}, "test": {"score": score}}
    given: dict[str, Any] = {
        "status": "succeeded",
        "metrics": found,
        "parameters": chosen,
        "progress": {"epoch": 3},
        "spec": {"training": {"epochs": 3, "early_stopping": None}},
    }
    return Job(**given | more)


def test_a_gain_is_above_zero_where_it_is_better_whichever_way_the_metric_goes() -> None:
    trials = [trial(False, 0.25), trial(True, 0.75)]
    for maximise, gain in ((False, 0.5), (True, -0.5)):
        table = gains.of(compared(maximise=maximise), trials)
        assert table is not None
        (row,) = table["rows"]
        assert (row["gain"], row["share"], row["seeds"]) == (gain, 0.3, 1)


def test_as_good_from_is_the_least_data_that_makes_up_for_the_base() -> None:
    scores = {(0.1, False): 0.6, (0.1, True): 0.9, (0.5, False): 0.3, (0.5, True): 0.5}
    scores |= {(1.0, False): 0.2, (1.0, True): 0.4}
    trials = [trial(scratch, score, share) for (share, scratch), score in scores.items()]
    table = gains.of(compared(maximise=False, shares=[1.0, 0.1, 0.5]), trials)
    assert table is not None
    assert [row["share"] for row in table["rows"]] == [0.1, 0.5, 1.0]
    assert table["as_good_from"] == 0.5
    never = gains.of(compared(maximise=True, shares=[1.0, 0.1, 0.5]), trials[2:])
    assert never is not None
    assert never["as_good_from"] is None


def test_what_failed_diverged_or_stopped_leaves_a_gap() -> None:
    sweep = compared(maximise=True, shares=[0.1])
    for other in (
        trial(True, 0.5, 0.1, status="failed"),
        trial(True, float("nan"), 0.1),
        trial(True, 0.5, 0.1, progress={"epoch": 2}),
    ):
        table = gains.of(sweep, [trial(False, 0.5, 0.1), other])
        assert table is not None
        assert table["rows"][0]["gain"] is None


def test_early_stopping_is_part_of_the_plan_and_counts() -> None:
    training = {"training": {"epochs": 3, "early_stopping": {"patience": 1}}}
    early = trial(True, 0.5, 0.1, progress={"epoch": 2}, spec=training)
    table = gains.of(compared(maximise=True, shares=[0.1]), [trial(False, 0.75, 0.1), early])
    assert table is not None
    assert table["rows"][0]["gain"] == 0.25


def test_without_a_test_split_scores_are_of_the_validation_split() -> None:
    alone = [
        trial(scratch, 0.5, metrics={"validation": {"score": score}})
        for scratch, score in ((False, 0.75), (True, 0.5))
    ]
    table = gains.of(compared(maximise=True), alone)
    assert table is not None
    assert (table["split"], table["rows"][0]["gain"]) == ("validation", 0.25)


def test_a_sweep_over_other_things_has_no_gains() -> None:
    sweep = Sweep(space={"training.epochs": {}}, request={}, metric="score", maximise=True)
    assert gains.of(sweep, []) is None
