"""What a job's trainer said, line by line."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import pages
from store.columns import storable
from store.session import now
from store.tables import Job, JobLog


def append(session: Session, job: Job, lines: Iterable[tuple[str, str]]) -> None:
    """Add lines (level, text) to a job that this transaction has locked."""
    moment = now(session)
    for level, line in lines:
        job.log_seq += 1
        text = storable(line)
        session.add(JobLog(job_id=job.id, seq=job.log_seq, at=moment, level=level, line=text))


def page(session: Session, job_id: str, after_seq: int = 0, limit: int = 100) -> pages.Page[JobLog]:
    """The lines after `after_seq`, oldest first."""
    query = select(JobLog).where(JobLog.job_id == job_id)
    return pages.in_order(session, query, JobLog.seq, limit, after_seq)
