"""What is learned of trials: where to look next, whom to stop, and what mattered."""

from typing import Any

from pydantic import TypeAdapter

from tasks.parts.spaces import Median, NoPruner, Random, Space, SuccessiveHalving, Tpe
from worker.studies import Attempt, Search, hopeless, importances, next_parameters

SPACE: Space = TypeAdapter(Space).validate_python(
    {
        "training.x": {"type": "float", "low": 0, "high": 1},
        "training.y": {"type": "int", "low": 0, "high": 4},
        "training.z": {"type": "choice", "choices": [{"name": "a"}, {"name": "b"}]},
    }
)


def search(attempts: Any = (), **more: Any) -> Search:
    given: dict[str, Any] = {
        "space": SPACE,
        "sampler": Random(),
        "pruner": NoPruner(),
        "seed": 0,
        "maximise": True,
        "attempts": attempts,
    }
    return Search(**(given | more))


def tried(count: int, maximise: bool = True) -> list[Attempt]:
    """Trials that are the better, the nearer x is to 0.3."""
    found = []
    for number in range(count):
        chosen = next_parameters(search(), number)
        worth = (chosen["training.x"] - 0.3) ** 2 * (-1 if maximise else 1)
        found.append(Attempt(number, "done", chosen, worth, {}))
    return found


def working(number: int, curve: dict[int, float], state: Any = "at work") -> Attempt:
    chosen = next_parameters(search(), number)
    return Attempt(number, state, chosen, max(curve.values(), default=None), curve)


def test_tpe_looks_near_what_did_well_whichever_way_is_better() -> None:
    for maximise in (True, False):
        known = search(tried(40, maximise), sampler=Tpe(), maximise=maximise)
        near = [next_parameters(known, 40 + k)["training.x"] for k in range(8)]
        assert sum(abs(x - 0.3) < 0.15 for x in near) >= 7, near


def test_a_trial_at_work_is_not_tried_again_beside() -> None:
    """With others at work nearby, the same number is sent elsewhere."""
    done = tried(20)
    alone = next_parameters(search(done, sampler=Tpe()), 20)
    beside = [Attempt(20 + k, "at work", alone, None, {}) for k in range(5)]
    assert next_parameters(search([*done, *beside], sampler=Tpe()), 20) != alone


def test_what_mattered_is_what_values_depended_on() -> None:
    shares = importances(search(tried(30)))
    assert shares is not None
    assert set(shares) == set(SPACE)
    assert shares["training.x"] > 0.8
    assert abs(sum(shares.values()) - 1) < 1e-4
    assert importances(search(tried(1))) is None
    alike = [each._replace(value=0.5) for each in tried(5)]
    found = importances(search(alike))
    assert found is None or set(found) == set(SPACE)


def test_the_median_is_of_those_that_came_to_their_end() -> None:
    ended = [working(k, {1: 0.5 + k / 10, 2: 0.9}, "done") for k in range(3)]
    low, high = working(3, {1: 0.55}), working(4, {1: 0.65})
    pruner = Median(startup_trials=3, warmup_epochs=1)
    assert hopeless(search([*ended, low, high], pruner=pruner)) == [3]
    assert hopeless(search([*ended, low, high], pruner=pruner, maximise=False)) == [4]
    assert hopeless(search([*ended[:2], low, high], pruner=pruner)) == []
    later = Median(startup_trials=3, warmup_epochs=2)
    assert hopeless(search([*ended, low, high], pruner=later)) == []
    assert hopeless(search([*ended, low, high])) == []


def test_halving_compares_on_the_rung_that_was_reached_last() -> None:
    curves = [{1: 0.1, 2: 0.9}, {1: 0.2}, {1: 0.3}, {1: 0.4, 2: 0.0, 3: 0.0}]
    attempts = [working(number, curve) for number, curve in enumerate(curves)]
    assert hopeless(search(attempts, pruner=SuccessiveHalving())) == [0, 1, 2]
    assert hopeless(search(attempts, pruner=SuccessiveHalving(), maximise=False)) == [1, 2]
    assert hopeless(search(attempts, pruner=SuccessiveHalving(min_epochs=2))) == []
    assert hopeless(search(attempts, pruner=SuccessiveHalving(factor=2))) == [1, 3]
