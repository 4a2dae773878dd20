"""The worker processes that were seen, and what room they have."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from store.session import now
from store.tables import Job, Worker

SEEN_WITHIN_SECONDS = 20.0


def beat(session: Session, worker_id: str, **facts: Any) -> Worker:
    """A sign of life with any columns of `tables.Worker`; the first one has them all."""
    moment = now(session)
    worker = session.get(Worker, worker_id)
    if worker is None:
        worker = Worker(id=worker_id, started_at=moment)
        session.add(worker)
    for name, value in {**facts, "last_seen_at": moment}.items():
        setattr(worker, name, value)
    session.flush()
    return worker


def gone(session: Session, worker_id: str) -> None:
    """The worker said good-bye."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def all(session: Session, seen_within: float | None = None) -> list[Worker]:
    """Every worker, or those with a sign of life in the last `seen_within` seconds."""
    query = select(Worker).order_by(Worker.host, Worker.started_at, Worker.id)
    if seen_within is not None:
        query = query.where(Worker.last_seen_at >= now(session) - timedelta(seconds=seen_within))
    return list(session.scalars(query))


def free_slots(
    session: Session, seen_within: float = SEEN_WITHIN_SECONDS, queue: str | None = None
) -> int:
    """How many more jobs the workers alive can take, of `queue` or of any."""
    running = select(Job.worker_id, func.count()).where(Job.status == "running")
    taken = dict(iter(session.execute(running.group_by(Job.worker_id))))
    serving = [w for w in open_for(session, queue, seen_within) if w.status != "draining"]
    return sum(max(0, worker.slots - taken.get(worker.id, 0)) for worker in serving)


def open_for(
    session: Session, queue: str | None, seen_within: float = SEEN_WITHIN_SECONDS
) -> list[Worker]:
    """The workers alive that serve `queue`, or any."""
    alive = all(session, seen_within)
    return [worker for worker in alive if queue is None or queue in worker.queues]


def sweep(session: Session, older_than_seconds: float = 86400) -> None:
    """Forget workers that have been silent for long."""
    oldest = now(session) - timedelta(seconds=older_than_seconds)
    session.execute(delete(Worker).where(Worker.last_seen_at < oldest))
