"""From a request to compare with learning from scratch to the sweep that does."""

from collections.abc import Collection
from typing import Any

from api.sweep_schemas import MOST_TRIALS, Comparison, SweepCreate
from models.parts.options import AUTO
from store.gains import FROM_SCRATCH, SEED, SHARE
from tasks.catalog import Spec
from tasks.parts.problems import Invalid, Problem
from tasks.parts.spaces import Choice, Grid, NoPruner, Space, grid_size


def spread_out(asked: SweepCreate, compare: Comparison, spec: Spec) -> SweepCreate:
    """The request as a grid over both sides, shares and seeds, beside what its space has.

    Raises Invalid where that would tell nothing.
    """
    seed = spec.training.seed
    axes: dict[str, list[Any]] = {
        FROM_SCRATCH: [False, True],
        SHARE: sorted(set(compare.shares)),
        SEED: list(range(seed, seed + compare.seeds)),
    }
    searched: Space = {} if asked.space == AUTO else asked.space
    added = {path: Choice(type="choice", choices=values) for path, values in axes.items()}
    _check(asked, spec, searched, axes)
    whole: Space = {**searched, **added}
    _check_trials(asked, grid_size(whole))
    return asked.model_copy(update={"space": whole, "sampler": Grid(), "trials": grid_size(whole)})


def _check(asked: SweepCreate, spec: Spec, searched: Space, axes: Collection[str]) -> None:
    """Raises Invalid for what is not a grid over two sides."""
    problems = []
    if spec.transfer is None:
        allowed = "with a `base`, or an architecture that is pretrained"
        problems.append(Problem(("compare",), "there is nothing to take over", None, allowed))
    for path in searched:
        if path in axes or any(axis.startswith(f"{path}.") for axis in axes):
            problems.append(Problem(("space", path), "is varied by `compare`", path))
    if "sampler" in asked.model_fields_set and not isinstance(asked.sampler, Grid):
        message = "a comparison trains every combination"
        problems.append(Problem(("sampler",), message, asked.sampler.name, "grid"))
    if not isinstance(asked.pruner, NoPruner):
        message = "every trial of a comparison is trained to its end"
        problems.append(Problem(("pruner",), message, asked.pruner.name, "none"))
    if problems:
        raise Invalid(*problems)


def _check_trials(asked: SweepCreate, needed: int) -> None:
    """Raises Invalid for too few of them, or more than any sweep may have; what a space cannot count has 0."""
    if needed > MOST_TRIALS:
        message = "takes more trials than a sweep may have"
        raise Invalid(Problem(("compare",), message, needed, f"at most {MOST_TRIALS}"))
    if "trials" in asked.model_fields_set and asked.trials < needed:
        message = "too few for the comparison"
        raise Invalid(Problem(("trials",), message, asked.trials, f"{needed}, or left out"))
