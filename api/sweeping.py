"""From a request to a sweep: every value that it may try is tried on the request first."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from api import faults
from api.comparing import spread_out
from api.job_schemas import JobCreate, model_name_of
from api.published import Find
from api.submitting import chosen_queue, chosen_sources, chosen_spec, chosen_webhook
from api.sweep_schemas import MOST_TRIALS, SweepCreate
from api.transferring import check_transfer, with_teacher
from models.parts.options import AUTO
from models.parts.pretrained import Pretrained
from store import sweeps
from store.columns import Object
from store.tables import Sweep
from tasks.catalog import Spec, architectures, family_of
from tasks.parts.problems import Invalid, Problem
from tasks.parts.spaces import Drawing, Grid, Median, Space, grid_size, requested

_OWN = set(SweepCreate.model_fields) - set(JobCreate.model_fields) | {"budget"}
"""Fields that the jobs of a sweep have not from it."""
_PLACES = ("task", "training", "transfer")
_PATH = re.compile(rf"({'|'.join(_PLACES)})(\.[a-z][a-z0-9_]*)+")


def submit_sweep(
    session: Session, project_id: str, asked: SweepCreate, *, find: Find, webhook_private: bool
) -> Sweep:
    """A running sweep. Raises NotFound, Invalid, and Conflict for a data set that is not ready."""
    dataset, base = chosen_sources(session, project_id, asked)
    request = asked.model_dump(mode="json", exclude_unset=True, exclude=_OWN)
    first = faults.read(JobCreate, request)
    if (exact := with_teacher(session, project_id, first.transfer)) is not None:
        first = first.model_copy(update={"transfer": exact})
        request["transfer"] = exact.model_dump(mode="json", exclude_unset=True)
    spec = chosen_spec(dataset, first, base, find)
    if asked.compare is not None:
        asked = spread_out(asked, asked.compare, spec)
    if asked.space != AUTO:
        _check_space(asked)
    check_transfer(session, dataset, spec, base)
    request = {**request, "task": {"name": dataset.task, **_pinned(first, request, spec)}}

    def resolved(changed: Object) -> Spec:
        return chosen_spec(dataset, faults.read(JobCreate, changed), base, find)

    if asked.space == AUTO:
        asked = _with_space(asked, request, resolved)
    _try_out(asked.space, request, resolved)
    return sweeps.create(
        session,
        project_id,
        name=asked.name or model_name_of(dataset.name),
        dataset_id=dataset.id,
        task=spec.task.name,
        request=request,
        base={"ref": base.ref, "checkpoint": base.checkpoint.id} if base else None,
        base_checkpoint_id=base.checkpoint.id if base else None,
        metric=spec.task.aim.metric,
        maximise=spec.task.aim.maximise,
        space={path: each.model_dump(mode="json") for path, each in asked.space.items()},
        sampler=asked.sampler.model_dump(mode="json"),
        pruner=asked.pruner.model_dump(mode="json"),
        seed=asked.seed,
        trials=_trials(asked),
        parallel=asked.parallel,
        priority=asked.priority,
        queue=chosen_queue(session, asked.resources.queue),
        devices=asked.resources.devices,
        budget_seconds=asked.budget.minutes * 60 if asked.budget else None,
        webhook=chosen_webhook(asked.webhook, private=webhook_private),
        profile=asked.profile.model_dump() if asked.profile else None,
    )


def _trials(asked: SweepCreate) -> int:
    """As many as were asked for, or as the grid has points."""
    if not isinstance(asked.sampler, Grid):
        return asked.trials
    return min(asked.trials, grid_size(asked.space))


def _with_space(
    asked: SweepCreate, request: Object, resolved: Callable[[Object], Spec]
) -> SweepCreate:
    """The request with the space that suits its task, begun with what a job would be, for as long as the budget lasts.

    Raises Invalid for a sampler that needs a space of its own.
    """
    sampler, given = asked.sampler, asked.model_fields_set
    if not isinstance(sampler, Drawing):
        message = f"the sampler `{sampler.name}` needs one"
        raise Invalid(Problem(("space",), message, None, "paths and what they may be"))
    changes: dict[str, Any] = {
        "space": _usual_space(request, resolved),
        "sampler": sampler.model_copy(update={"begin_with_default": True}),
    }
    if "pruner" not in given:
        changes["pruner"] = Median()
    if "trials" not in given and asked.budget is not None:
        changes["trials"] = MOST_TRIALS
    return asked.model_copy(update=changes)


def _usual_space(request: Object, resolved: Callable[[Object], Spec]) -> Space:
    """The learning rate, and the architectures unless one is asked for, or a base brings its own."""
    factor = {"type": "float", "low": 0.2, "high": 5.0, "log": True, "relative": True}
    space: Object = {"training.optimizer.learning_rate": factor}
    task, default = request["task"], resolved(request).task
    if task.get("architecture", AUTO) == AUTO and not request.get("base"):
        others = [
            {"name": name}
            for name, each in architectures(family_of(type(default))).items()
            if not issubclass(each, Pretrained) and name != default.architecture.name
        ]

        def fits(option: Object) -> bool:
            with suppress(Invalid):
                resolved({**request, "task": {**task, "architecture": option}})
                return True
            return False

        choices = [AUTO, *filter(fits, others)]
        space["task.architecture"] = {"type": "choice", "choices": choices}
    return TypeAdapter(Space).validate_python(space)


def _check_space(asked: SweepCreate) -> None:
    """Raises Invalid for paths that lead to no field of a job, and for a grid without steps."""
    problems = []
    for path, parameter in asked.space.items():
        loc, within = ("space", path), [p for p in asked.space if path.startswith(f"{p}.")]
        if not _PATH.fullmatch(path):
            message = "must be a field's path that begins with one of these"
            problems.append(Problem(loc, message, path, [f"{place}." for place in _PLACES]))
        elif within:
            problems.append(Problem(loc, "lies within another path of the space", path, within))
        if isinstance(asked.sampler, Grid) and not parameter.size():
            problems.append(Problem((*loc, "step"), "a grid needs a step", None, "a number"))
    if problems:
        raise Invalid(*problems)


def _pinned(asked: JobCreate, request: Object, spec: Spec) -> Object:
    """The request's task, for which a published checkpoint is the same in every trial."""
    task: Object = request.get("task") or {}
    if asked.task is None or not isinstance(asked.task.architecture, Pretrained):
        return task
    revision = {"revision": spec.task.architecture.revision}
    return {**task, "architecture": {**task["architecture"], **revision}}


def _try_out(space: Space, request: Object, resolved: Callable[[Object], Spec]) -> None:
    """Raises Invalid, naming the paths whose lowest, highest or other values make no valid job."""

    def dumped(changed: Object) -> Object:
        return resolved(changed).model_dump(mode="json")

    found: dict[tuple[tuple[str | int, ...], str], Problem] = {}
    for path, parameters in _combinations(space):
        try:
            resolved(requested(request, parameters, dumped, space))
        except Invalid as error:
            for problem in error.problems:
                fault = _blamed(problem, path, parameters)
                found.setdefault((fault.loc, fault.msg), fault)
    if found:
        raise Invalid(*found.values())


def _combinations(space: Space) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each parameter's extremes, with the others' first values."""
    first = {path: parameter.probes()[0] for path, parameter in space.items()}
    for path, parameter in space.items():
        for value in parameter.probes():
            yield path, {**first, path: value}


def _blamed(problem: Problem, path: str, parameters: dict[str, Any]) -> Problem:
    """The problem as one of the space: of the path it names, or else of the one that was varied."""
    place = ".".join(map(str, problem.loc))
    named = (p for p in parameters if place == p or place.startswith(f"{p}."))
    around = (p for p in (path, *parameters) if p.startswith(f"{place}."))
    at_fault = next(named, next(around, path))
    value, message = parameters[at_fault], problem.msg
    if place != at_fault:
        message = f"{place}: {message}"
    if at_fault != path:
        message = f"{message} (with {path} = {parameters[path]!r})"
    return Problem(("space", at_fault), message, value, problem.allowed)
