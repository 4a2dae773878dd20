"""The queues: which jobs are ready, why one waits, and which running ones give their device up for it."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from store import workers
from store.session import clock, now
from store.tables import Job

BEST_FIRST = (Job.priority.desc(), Job.created_at, Job.id)
"""The order in which ready jobs are taken."""


class Depth(TypedDict):
    """A queue's load."""

    queued: int
    oldest_seconds: float


def ready(
    moment: datetime | ColumnElement[datetime],
    queues: Sequence[str] | None = None,
    devices: int | None = None,
) -> ColumnElement[bool]:
    """Jobs that could start at `moment`, of `queues` or of any, on at most so many devices."""
    condition = (Job.status == "queued") & (Job.available_at <= moment)
    if devices is not None:
        condition &= Job.devices <= devices
    return condition if queues is None else condition & Job.queue.in_(queues)


def ready_count(session: Session, queues: Sequence[str] | None = None) -> int:
    """How many jobs could start now."""
    query = select(func.count()).select_from(Job).where(ready(now(session), queues))
    return session.execute(query).scalar_one()


def any_ready(session: Session, queues: Sequence[str], devices: int = 1) -> bool:
    """Whether a job of `queues` could start now; cheap, since idle workers ask all the time."""
    found = exists().where(ready(clock(session), queues, devices))
    return session.execute(select(found)).scalar_one()


def depths(session: Session) -> dict[str, Depth]:
    """{queue: how many jobs are queued, and how long the oldest has been}"""
    query = select(Job.queue, func.count(), func.min(Job.created_at)).where(Job.status == "queued")
    moment = now(session)
    return {
        queue: Depth(queued=number, oldest_seconds=(moment - oldest).total_seconds())
        for queue, number, oldest in session.execute(query.group_by(Job.queue))
    }


def waiting(session: Session, job: Job) -> str:
    """Why a queued job waits."""
    seconds = (job.available_at - now(session)).total_seconds()
    if seconds > 0:
        return f"retry in {seconds:.0f} s"
    serving = workers.open_for(session, job.queue)
    if not serving:
        return f"no worker serves queue {job.queue}"
    if all(worker.devices < job.devices for worker in serving):
        return f"no worker of queue {job.queue} has {job.devices} devices"
    for running, taker in preemptions(session).items():
        if taker.id == job.id:
            return f"{running}, which has a lower priority, is giving its device up"
    ahead = _ahead(session, job)
    if ahead:
        return f"{ahead} job{'s are' if ahead > 1 else ' is'} ahead in queue {job.queue}"
    if job.devices > 1:
        return f"next in queue {job.queue}: starts when a worker has {job.devices} devices free"
    if workers.free_slots(session, queue=job.queue):
        return "starting now"
    return f"next in queue {job.queue}: every worker is busy"


def is_preempted(session: Session, job: Job) -> bool:
    """Whether a running job is to give its device up; cheap while nothing ready has a higher priority."""
    outranked = exists().where(ready(clock(session), devices=1), Job.priority > job.priority)
    return session.execute(select(outranked)).scalar_one() and job.id in preemptions(session)


def preemptions(session: Session) -> dict[str, Job]:
    """{id of a running job: the ready job that is to have its device}

    Ready jobs, the best first, take what is free or soon will be. One that finds nothing takes the
    device of a job with a lower priority: the lowest, and among equals the one submitted last.

    A job of several devices gives up all of them, but takes nobody's: it waits until enough are free.
    """
    serving = [w for w in workers.open_for(session, None) if w.status != "draining"]
    kept: dict[str, list[Job]] = {worker.id: [] for worker in serving}
    # Whose job was asked to end or to pause has its device back without preempting anybody.
    staying = select(Job).where(Job.status == "running", Job.desired.is_(None))
    running_jobs = session.scalars(
        staying.where(Job.worker_id.in_(kept)),
        # This transaction may have seen one of them before it was taken.
        execution_options={"populate_existing": True},
    )
    for job in running_jobs:
        kept[job.worker_id or ""].append(job)
    free = {worker.id: worker.slots - len(kept[worker.id]) for worker in serving}
    served = {queue for worker in serving for queue in worker.queues}
    first: list[Job] = []
    for queue in served:
        best = select(Job).where(ready(now(session), [queue], 1)).order_by(*BEST_FIRST)
        places = sum(max(w.slots, len(kept[w.id])) for w in serving if queue in w.queues)
        first += session.scalars(best.limit(places))
    given: dict[str, Job] = {}
    for job in sorted(first, key=lambda job: (-job.priority, job.created_at, job.id)):
        able = [worker.id for worker in serving if job.queue in worker.queues]
        idle = next((worker for worker in able if free[worker] > 0), None)
        if idle is not None:
            free[idle] -= 1
            continue
        lower = [
            running
            for worker in able
            for running in kept[worker]
            if running.priority < job.priority and running.id not in given
        ]
        if lower:
            youngest = max(lower, key=lambda r: (-r.priority, r.created_at, r.id))
            given[youngest.id] = job
    return given


def _ahead(session: Session, job: Job) -> int:
    """How many ready jobs of its queue a worker would take before this one."""
    same = Job.priority == job.priority
    older = or_(
        Job.created_at < job.created_at, (Job.created_at == job.created_at) & (Job.id < job.id)
    )
    first = ready(now(session), [job.queue]) & or_(Job.priority > job.priority, same & older)
    return session.execute(select(func.count()).select_from(Job).where(first)).scalar_one()
