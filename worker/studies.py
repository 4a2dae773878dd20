"""What a sweep's trials teach: which to try next, which to give up, and what mattered.

A study is made anew from the trials each time, so that nothing but them has to be kept.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from tasks.parts.spaces import (
    Choice,
    Drawing,
    Grid,
    IntRange,
    Median,
    NoPruner,
    Parameter,
    Pruner,
    Random,
    Sampler,
    SuccessiveHalving,
    Tpe,
    as_text,
    grid_point,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "lost": TrialState.FAIL,
    "at work": TrialState.RUNNING,
}


class Attempt(NamedTuple):
    """A trial as a study sees it."""

    number: int
    state: Literal["done", "pruned", "lost", "at work"]
    parameters: Mapping[str, Any]
    value: float | None
    curve: Mapping[int, float]
    """{epoch: what the trial was worth after it}"""


class Search(NamedTuple):
    """What is searched, how, and what was tried."""

    space: Mapping[str, Parameter]
    sampler: Sampler
    pruner: Pruner
    seed: int
    maximise: bool
    attempts: Sequence[Attempt]


def next_parameters(search: Search, number: int) -> dict[str, Any]:
    """{path: value} of the trial with that number."""
    if isinstance(search.sampler, Grid):
        return grid_point(search.space, search.seed, number)
    distributions = {path: _distribution(each) for path, each in search.space.items()}
    asked = _study(search, _sampler(search, number)).ask(distributions)
    return {path: _value(search.space[path], drawn) for path, drawn in asked.params.items()}


def begins_with_default(search: Search) -> bool:
    """Whether the first trial is what a job without a sweep would be."""
    return isinstance(search.sampler, Drawing) and search.sampler.begin_with_default


def hopeless(search: Search) -> list[int]:
    """The numbers of trials at work that the pruner gives up."""
    working = [each for each in search.attempts if each.state == "at work" and each.curve]
    if isinstance(search.pruner, NoPruner) or not working:
        return []
    if isinstance(search.pruner, SuccessiveHalving):
        return [each.number for each in working if _falls_behind(each, search, search.pruner)]
    assert isinstance(search.pruner, Median)
    median = optuna.pruners.MedianPruner(search.pruner.startup_trials, search.pruner.warmup_epochs)
    study = _study(search)
    return [each.number for each in working if median.prune(study, _trial(each, search))]


def importances(search: Search) -> dict[str, float] | None:
    """{path: its share of what made trials differ} (fANOVA, Hutter et al., 2014); None for too few trials."""
    done = [each for each in search.attempts if each.state == "done"]
    varied = [path for path, each in search.space.items() if not _is_fixed(each)]
    if len(done) < 2 or not varied:
        return None
    evaluator = FanovaImportanceEvaluator(seed=search.seed)
    try:
        found = get_param_importances(_study(search), evaluator=evaluator, params=varied)
    except (ValueError, RuntimeError):  # all trials alike
        return None
    return {path: round(float(share), 6) for path, share in found.items()}


def _study(search: Search, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    study = optuna.create_study(
        sampler=sampler, direction="maximize" if search.maximise else "minimize"
    )
    study.add_trials([_trial(each, search) for each in search.attempts])
    return study


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """One that draws for this trial what it would draw in any process."""
    seed = random.Random(f"{search.seed} {number}").getrandbits(32)
    if isinstance(search.sampler, Random):
        return optuna.samplers.RandomSampler(seed)
    assert isinstance(search.sampler, Tpe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=search.sampler.startup_trials,
            multivariate=True,
            constant_liar=True,
        )


def _trial(attempt: Attempt, search: Search) -> FrozenTrial:
    return create_trial(
        state=_STATES[attempt.state],
        value=attempt.value if attempt.state == "done" else None,
        params={path: _drawn(search.space[path], v) for path, v in attempt.parameters.items()},
        distributions={path: _distribution(search.space[path]) for path in attempt.parameters},
        intermediate_values=dict(attempt.curve),
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Choice):
        # By place, since what is chosen may be a whole option.
        return CategoricalDistribution(range(len(parameter.choices)))
    low, high, log, step = parameter.low, parameter.top(), parameter.log, parameter.step
    if isinstance(parameter, IntRange):
        return IntDistribution(int(low), int(high), log, int(step or 1))
    return FloatDistribution(low, high, log, step)


def _drawn(parameter: Parameter, value: Any) -> Any:
    if isinstance(parameter, Choice):
        return [as_text(choice) for choice in parameter.choices].index(as_text(value))
    return value if isinstance(parameter, IntRange) else float(value)


def _value(parameter: Parameter, drawn: Any) -> Any:
    return parameter.choices[drawn] if isinstance(parameter, Choice) else drawn


def _is_fixed(parameter: Parameter) -> bool:
    return isinstance(parameter, Choice) and len(parameter.choices) == 1


def _falls_behind(attempt: Attempt, search: Search, halving: SuccessiveHalving) -> bool:
    """Whether it is not among the best of those that got to the rung it reached last (Li et al., 2020)."""
    rung = halving.min_epochs
    if max(attempt.curve) < rung:
        return False
    while max(attempt.curve) >= rung * halving.factor:
        rung *= halving.factor
    sign = 1.0 if search.maximise else -1.0
    there = [sign * each.curve[rung] for each in search.attempts if rung in each.curve]
    if rung not in attempt.curve or len(there) < halving.factor:
        return False
    better = sum(value > sign * attempt.curve[rung] for value in there)
    return better >= len(there) // halving.factor
