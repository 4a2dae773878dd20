"""One look after a sweep: give trials up, make the next ones, end it. Any number may look at once.

What is to be done is found out before the transaction that does it, which looks again behind a lock: a
keeper that is killed has done all of a step or nothing, and of two only one does it.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from models.parts.options import OneOf
from models.parts.training import Training, Transfer
from store import checkpoints, datasets, metrics, sweeps
from store.columns import Object
from store.errors import NotFound
from store.session import Database
from store.tables import Checkpoint, Dataset, Job, Sweep
from tasks.base import Facts
from tasks.catalog import Spec, read_spec, read_task, resolve
from tasks.parts.problems import Invalid
from tasks.parts.spaces import (
    Grid,
    NoPruner,
    Pruner,
    Sampler,
    Space,
    default_point,
    grid_size,
    requested,
)
from worker import studies
from worker.published import grounded
from worker.studies import Attempt, Search

log = logging.getLogger(__name__)

_SPACE: TypeAdapter[Space] = TypeAdapter(Space)
_SAMPLER: TypeAdapter[Sampler] = TypeAdapter(OneOf[Sampler])
_PRUNER: TypeAdapter[Pruner] = TypeAdapter(OneOf[Pruner])


class Look(NamedTuple):
    """A running sweep as it was at one moment."""

    sweep: Sweep
    state: str
    is_late: bool
    trials: list[Job]
    search: Search
    dataset: Dataset | None
    base: Checkpoint | None

    @property
    def working(self) -> int:
        """Trials that have not ended."""
        return sum(sweeps.active(job) for job in self.trials)

    @property
    def is_complete(self) -> bool:
        """Whether no trial is to follow."""
        sweep, search = self.sweep, self.search
        there_are = grid_size(search.space) if isinstance(search.sampler, Grid) else sweep.trials
        return sweep.desired is not None or sweep.made >= min(sweep.trials, there_are)


def tend(database: Database, sweep_id: str) -> None:
    """Do all there is to do for a sweep now, and let go of it. Raises Unreachable."""
    seen = None
    while (look := _look(database, sweep_id)) is not None:
        if not _act(database, look):
            seen = look.state
            break
    with database.transaction() as session:
        try:
            sweeps.leave(session, sweep_id, seen)
        except NotFound:
            log.info("%s was deleted", sweep_id)


def _look(database: Database, sweep_id: str) -> Look | None:
    """The sweep as it is; None if it has ended or is gone."""
    with database.transaction(read_only=True) as session:
        sweep = session.get(Sweep, sweep_id)
        if sweep is None or sweep.status != "running":
            return None
        # The state first: whatever happens while the rest is read is looked at once more.
        state = sweeps.state(session, sweep)
        trials = sweeps.trials(session, sweep_id)
        base = sweep.base_checkpoint_id
        return Look(
            sweep,
            state,
            sweeps.is_late(session, sweep),
            trials,
            _search(session, sweep, trials),
            datasets.load(session, sweep.dataset_id) if sweep.dataset_id else None,
            checkpoints.load(session, base) if base else None,
        )


def _search(session: Session, sweep: Sweep, trials: Sequence[Job]) -> Search:
    pruner = _PRUNER.validate_python(sweep.pruner)
    watched = not isinstance(pruner, NoPruner)
    return Search(
        _SPACE.validate_python(sweep.space),
        _SAMPLER.validate_python(sweep.sampler),
        pruner,
        sweep.seed,
        sweep.maximise,
        [_attempt(session, sweep, job, watched=watched) for job in trials],
    )


def _attempt(session: Session, sweep: Sweep, job: Job, *, watched: bool) -> Attempt:
    curve: dict[int, float] = {}
    if watched:
        name = f"validation/{sweep.metric}"
        found = metrics.curve(session, job.id, [name]).get(name, [])
        curve = {epoch: value for _, epoch, value in found}
    assert job.trial is not None
    value = sweeps.value(sweep, job)
    return Attempt(job.trial, _state(job, value), job.parameters or {}, value, curve)


def _state(job: Job, value: float | None) -> Any:
    if sweeps.active(job):
        # What is to end anyway needs no pruning, and is given up as little as it is done.
        return "at work"
    if job.status != "succeeded" or value is None:
        return "lost"
    return "pruned" if job.pruned else "done"


def _act(database: Database, look: Look) -> bool:
    """Take the next step, if there is one; whether the sweep is to be looked at again."""
    sweep = look.sweep
    if look.is_late and sweep.desired is None:
        with database.transaction() as session:
            sweeps.run_out(session, sweep.id)
        return True
    if _prune(database, look):
        return True
    if not look.is_complete and look.working < sweep.parallel:
        _add(database, look)
        return True
    if look.is_complete and not look.working:
        shares = studies.importances(look.search)
        with database.transaction() as session:
            ended = sweeps.finish(session, sweep.id, shares)
        log.info("%s has ended: %s", sweep.id, ended.status)
        return True
    return False


def _prune(database: Database, look: Look) -> bool:
    stoppable = {job.trial for job in look.trials if sweeps.active(job) and job.desired is None}
    given_up = [number for number in studies.hopeless(look.search) if number in stoppable]
    if not given_up:
        return False
    with database.transaction() as session:
        stopped = sweeps.prune(session, look.sweep.id, given_up)
    for number in stopped:
        log.info("trial %d of %s is pruned", number, look.sweep.id)
    return bool(stopped)


def _add(database: Database, look: Look) -> None:
    """Make the next trial: a job, or one that has failed when what was chosen does not fit together."""
    sweep, number, error = look.sweep, look.sweep.made, None
    request, spec, space = sweep.request, _unresolved(sweep), look.search.space

    def resolved(asked: Object) -> Object:
        return _dump(_resolve(database, look, asked))

    if number == 0 and studies.begins_with_default(look.search):
        parameters = default_point(space, resolved(sweep.request))
    else:
        parameters = studies.next_parameters(look.search, number)
    try:
        request = requested(sweep.request, parameters, resolved, space)
        spec = resolved(request)
    except (Invalid, ValidationError) as refused:
        message = f"What the sweep chose does not fit together. {_in_words(refused)}"
        error = {"code": "invalid", "message": message}
    with database.transaction() as session:
        made = sweeps.add(
            session,
            sweep.id,
            number,
            parameters=parameters,
            request=request,
            spec=spec,
            error=error,
        )
    if made is not None:
        log.info("trial %d of %s is %s", number, sweep.id, made.id)


def _resolve(database: Database, look: Look, asked: Object) -> Spec:
    """What a request comes to for the sweep's data set. Raises ValidationError and Invalid."""
    assert look.dataset is not None, "kept as long as the sweep is running"
    facts = Facts(look.dataset.schema, look.dataset.splits)
    task, transfer = asked.get("task"), asked.get("transfer")
    return resolve(
        look.dataset.task,
        facts,
        grounded(database, read_task(task)) if task else None,
        Training.model_validate(asked.get("training") or {}),
        Transfer.model_validate(transfer) if transfer else None,
        read_spec(look.base.spec).task if look.base else None,
    )


def _dump(spec: Spec) -> Object:
    return spec.model_dump(mode="json")


def _unresolved(sweep: Sweep) -> Object:
    return {"task": {"name": sweep.task}}


def _in_words(refused: Invalid | ValidationError) -> str:
    if isinstance(refused, Invalid):
        return str(refused)
    places = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in refused.errors())
    return "; ".join(places)
