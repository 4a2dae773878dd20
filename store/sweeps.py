"""Sweeps: searches whose trials are jobs. The rows are the truth; keepers only look at them.

Whoever adds a trial has locked the sweep and read how many there are, so that none is made twice.
"""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete as delete_from
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from store import checkpoints, datasets, ids, jobs, models, pages
from store.columns import Object
from store.errors import Conflict, NotFound
from store.session import now
from store.tables import TERMINAL, Job, Sweep

End = Literal["succeeded", "failed", "cancelled"]


# What users ask for


def create(
    session: Session,
    project_id: str,
    *,
    name: str,
    dataset_id: str,
    task: str,
    request: Object,
    metric: str,
    maximise: bool,
    space: Object,
    sampler: Object,
    pruner: Object,
    seed: int,
    trials: int,
    parallel: int,
    queue: str,
    base: Object | None = None,
    base_checkpoint_id: str | None = None,
    priority: int = 0,
    devices: int = 1,
    budget_seconds: float | None = None,
    webhook: Object | None = None,
    profile: Object | None = None,
) -> Sweep:
    """A running sweep without any trials yet. Raises NotFound for another project's data set or base."""
    dataset = datasets.hold(session, project_id, dataset_id)
    if base_checkpoint_id is not None:
        checkpoints.hold(session, project_id, base_checkpoint_id)
    sweep = Sweep(
        id=ids.new("swp"),
        project_id=project_id,
        name=name,
        dataset_id=dataset_id,
        dataset_name=dataset.name,
        task=task,
        request=request,
        base=base,
        base_checkpoint_id=base_checkpoint_id,
        metric=metric,
        maximise=maximise,
        space=space,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        trials=trials,
        parallel=parallel,
        made=0,
        status="running",
        priority=priority,
        queue=queue,
        devices=devices,
        budget_seconds=budget_seconds,
        webhook=webhook,
        profile=profile,
        created_at=now(session),
    )
    session.add(sweep)
    session.flush()
    return sweep


def get(session: Session, project_id: str, sweep_id: str) -> Sweep:
    """Raises NotFound, also for another project's sweep."""
    sweep = session.get(Sweep, sweep_id)
    if sweep is None or sweep.project_id != project_id:
        raise NotFound("sweep", sweep_id)
    return sweep


def page(
    session: Session, project_id: str, limit: int = 20, after: str | None = None
) -> pages.Page[Sweep]:
    query = select(Sweep).where(Sweep.project_id == project_id)
    return pages.newest_first(session, query, Sweep.id, limit, after)


def trials(session: Session, sweep_id: str) -> list[Job]:
    """Its jobs in the order of their numbers; deleted ones are not there."""
    query = select(Job).where(Job.sweep_id == sweep_id).order_by(Job.trial)
    return list(session.scalars(query, execution_options={"populate_existing": True}))


def cancel(session: Session, project_id: str, sweep_id: str) -> Sweep:
    """End the sweep without a model: trials that have not ended are cancelled.

    Raises Conflict when it has ended already.
    """
    sweep = _unfinished(session, project_id, sweep_id, "cancelled")
    sweep.desired = "cancel"
    halt(session, sweep)
    if not any(active(job) for job in trials(session, sweep.id)):
        end(session, sweep, "cancelled")
    session.flush()
    return sweep


def stop(session: Session, project_id: str, sweep_id: str) -> Sweep:
    """End the sweep early: running trials are stopped, and the best becomes its model.

    Raises Conflict when it has ended or is being cancelled.
    """
    sweep = _unfinished(session, project_id, sweep_id, "stopped")
    if sweep.desired == "cancel":
        raise Conflict(f"Sweep {sweep_id} is being cancelled.")
    sweep.desired = "stop"
    halt(session, sweep)
    session.flush()
    return sweep


def delete(session: Session, project_id: str, sweep_id: str) -> None:
    """Forget a sweep that has ended, with its trials; the model it made stays.

    Raises Conflict while it has not ended.
    """
    sweep = _locked(session, project_id, sweep_id)
    if sweep.status not in TERMINAL:
        raise Conflict(f"Sweep {sweep_id} is {shown_status(sweep)}; cancel it before deleting it.")
    for job in trials(session, sweep_id):
        jobs.delete(session, project_id, job.id)
    session.expunge(sweep)
    session.execute(delete_from(Sweep).where(Sweep.id == sweep_id))


# What keepers do


def due(session: Session) -> list[str]:
    """The sweeps, in nobody's hands, of which no keeper has seen the present state; cheap without any."""
    free = or_(Sweep.kept_until.is_(None), Sweep.kept_until < now(session))
    running = session.scalars(select(Sweep).where(Sweep.status == "running", free))
    return [sweep.id for sweep in running if state(session, sweep) != sweep.seen]


def take(session: Session, sweep_id: str, seconds: float) -> bool:
    """Take a due sweep in hand for so long; whether it was to be had."""
    try:
        sweep = lock(session, sweep_id)
    except NotFound:
        return False
    if sweep_id not in due(session):
        return False
    sweep.kept_until = now(session) + timedelta(seconds=seconds)
    return True


def leave(session: Session, sweep_id: str, seen: str | None) -> None:
    """Let go of a sweep, in whose state `seen` there was nothing left to do."""
    sweep = lock(session, sweep_id)
    sweep.kept_until, sweep.seen = None, seen


def lock(session: Session, sweep_id: str) -> Sweep:
    """The sweep as it is now, locked until the transaction ends. Raises NotFound."""
    session.flush()
    query = select(Sweep).where(Sweep.id == sweep_id).with_for_update()
    found = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if found is None:
        raise NotFound("sweep", sweep_id)
    return found


def state(session: Session, sweep: Sweep) -> str:
    """What a keeper may have to act on, as a text: another one means that something happened."""
    unfinished = select(Job.trial, Job.status, Job.progress).where(
        Job.sweep_id == sweep.id, Job.status.not_in(TERMINAL)
    )
    judged = sweep.pruner.get("name") != "none"
    shown = [
        f"{trial}/{progress.get('epoch', 0)}/{status}" if judged else str(trial)
        for trial, status, progress in session.execute(unfinished.order_by(Job.trial))
    ]
    late = "late" if is_late(session, sweep) else "in time"
    return f"{sweep.desired}, {late}, {sweep.made} made, at work: {' '.join(shown)}"


def is_late(session: Session, sweep: Sweep) -> bool:
    """Whether its budget is used up, which counts from the start of its first trial."""
    if sweep.budget_seconds is None:
        return False
    started = session.execute(
        select(func.min(Job.started_at)).where(Job.sweep_id == sweep.id)
    ).scalar_one()
    spent = (now(session) - started).total_seconds() if started else 0.0
    return bool(spent >= sweep.budget_seconds)


def add(
    session: Session,
    sweep_id: str,
    number: int,
    *,
    parameters: Object,
    request: Object,
    spec: Object,
    error: Object | None = None,
) -> Job | None:
    """The next trial as a queued job, or one that has failed for the `error` already.

    None when it is not the next one any more, or none is wanted.
    """
    sweep = lock(session, sweep_id)
    wanted = sweep.status == "running" and sweep.desired is None
    if not wanted or sweep.made != number:
        return None
    job = jobs.create(
        session,
        sweep.project_id,
        kind="train",
        name=f"{sweep.name} {number}",
        dataset_id=sweep.dataset_id,
        task=sweep.task,
        spec=spec,
        request=request,
        base=sweep.base,
        base_checkpoint_id=sweep.base_checkpoint_id,
        priority=sweep.priority,
        queue=sweep.queue,
        devices=sweep.devices,
        model_name=sweep.name,
        webhook=sweep.webhook,
        profile=sweep.profile,
        trial_of=(sweep_id, number, parameters),
    )
    if error is not None:
        jobs.refuse(session, job, error)
    sweep.made += 1
    session.flush()
    return job


def prune(session: Session, sweep_id: str, numbers: Sequence[int]) -> list[int]:
    """Stop trials that are not to become the best; those that could be stopped."""
    sweep = lock(session, sweep_id)
    those = select(Job.id, Job.trial).where(Job.sweep_id == sweep_id, Job.trial.in_(numbers))
    found = session.execute(those.order_by(Job.trial)).all()
    return [trial or 0 for job, trial in found if jobs.prune(session, sweep.project_id, job)]


def run_out(session: Session, sweep_id: str) -> None:
    """Stop a sweep whose budget is used up."""
    sweep = lock(session, sweep_id)
    if sweep.status == "running" and sweep.desired is None:
        sweep.desired = "stop"
        halt(session, sweep)


def halt(session: Session, sweep: Sweep) -> None:
    """Have the trials end as the sweep is to; what has learned nothing yet cannot be stopped, but cancelled."""
    for job in trials(session, sweep.id):
        if not active(job):
            continue
        try:
            wish = jobs.cancel if sweep.desired == "cancel" else jobs.stop
            wish(session, sweep.project_id, job.id)
        except Conflict:
            if not active(jobs.get(session, sweep.project_id, job.id)):
                continue  # it has ended meanwhile
            jobs.cancel(session, sweep.project_id, job.id)


def finish(session: Session, sweep_id: str, importances: Object | None) -> Sweep:
    """End a sweep whose trials have ended: its best trial's checkpoint becomes a version of its model.

    Nothing happens to one that has ended, or has a trial at work.
    """
    sweep = lock(session, sweep_id)
    all_trials = trials(session, sweep_id)
    if sweep.status != "running" or any(active(job) for job in all_trials):
        return sweep
    if sweep.desired == "cancel":
        return end(session, sweep, "cancelled")
    for job in ranking(sweep, all_trials):
        checkpoint = checkpoints.chosen(session, job.id)
        if checkpoint is not None:
            sweep.importances = importances
            return _succeed(session, sweep, job, checkpoint.id)
    if sweep.desired == "stop":
        return end(session, sweep, "cancelled")
    sweep.error = _without_success(all_trials)
    return end(session, sweep, "failed")


def end(session: Session, sweep: Sweep, status: End) -> Sweep:
    """Into a status that the sweep never leaves."""
    sweep.status, sweep.desired, sweep.kept_until = status, None, None
    sweep.finished_at = now(session)
    session.flush()
    return sweep


# What is shown


def shown_status(sweep: Sweep) -> str:
    """The status, and what was asked of a running sweep: cancelling, stopping."""
    if sweep.status == "running":
        return {"cancel": "cancelling", "stop": "stopping"}.get(sweep.desired or "", "running")
    return sweep.status


def shown_model(sweep: Sweep) -> str | None:
    """The model version it made, such as reviews@1, while it is there."""
    return f"{sweep.name}@{sweep.model_version}" if sweep.model_id else None


def active(job: Job) -> bool:
    """Whether a trial has not ended."""
    return job.status not in TERMINAL


def value(sweep: Sweep, job: Job) -> float | None:
    """What a trial is worth so far: the sweep's metric of its best epoch on the validation split."""
    found = job.metrics.get("validation", {}).get(sweep.metric)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def ranking(sweep: Sweep, all_trials: Sequence[Job]) -> list[Job]:
    """The trials that succeeded with a value, the best first, among equals the earliest."""
    found = [
        (worth, job)
        for job in all_trials
        if job.status == "succeeded" and (worth := value(sweep, job)) is not None
    ]
    sign = -1.0 if sweep.maximise else 1.0
    return [job for _, job in sorted(found, key=lambda each: (sign * each[0], each[1].trial))]


def _succeed(session: Session, sweep: Sweep, best: Job, checkpoint_id: str) -> Sweep:
    version = models.publish(session, sweep.project_id, sweep.name, best.id, checkpoint_id)
    best.model_id, best.model_version = version.model_id, version.version
    sweep.model_id, sweep.model_version = version.model_id, version.version
    sweep.best = {
        "job": best.id,
        "trial": best.trial,
        "value": value(sweep, best),
        "parameters": best.parameters,
    }
    return end(session, sweep, "succeeded")


def _without_success(all_trials: Sequence[Job]) -> Object:
    message = f"None of {len(all_trials)} trials succeeded."
    failed = next((job for job in all_trials if job.error is not None), None)
    if failed is not None and failed.error is not None:
        message += f" Trial {failed.trial}: {failed.error.get('message')}"
    return {"code": "no_success", "message": message}


def _unfinished(session: Session, project_id: str, sweep_id: str, done: str) -> Sweep:
    """The sweep, locked. Raises NotFound, and Conflict when it has ended and so cannot be `done`."""
    sweep = _locked(session, project_id, sweep_id)
    if sweep.status in TERMINAL:
        ended = "was cancelled" if sweep.status == "cancelled" else f"has {sweep.status}"
        raise Conflict(f"Sweep {sweep_id} {ended} already; it cannot be {done}.")
    return sweep


def _locked(session: Session, project_id: str, sweep_id: str) -> Sweep:
    get(session, project_id, sweep_id)
    return lock(session, sweep_id)
