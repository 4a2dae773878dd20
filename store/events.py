"""What happened to a job, numbered without gaps."""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from store import leases, pages, webhooks
from store.columns import Object
from store.session import now
from store.tables import Job, JobEvent


def add(session: Session, job_id: str, type: str, data: Object) -> JobEvent:
    """Raises NotFound when the job is gone."""
    return append(session, leases.lock(session, job_id), type, data)


def append(session: Session, job: Job, type: str, data: Object) -> JobEvent:
    """The next event of a job that this transaction has locked; its webhook will hear of a "status"."""
    job.event_seq += 1
    event = JobEvent(job_id=job.id, seq=job.event_seq, at=now(session), type=type, data=data)
    session.add(event)
    if type == "status":
        webhooks.add(session, job, event)
    return event


def happened(session: Session, job_id: str, type: str) -> bool:
    """Whether the job has had such an event."""
    query = select(exists().where(JobEvent.job_id == job_id, JobEvent.type == type))
    return session.execute(query).scalar_one()


def page(
    session: Session, job_id: str, after_seq: int = 0, limit: int = 100
) -> pages.Page[JobEvent]:
    """The events after `after_seq`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    return pages.in_order(session, query, JobEvent.seq, limit, after_seq)
