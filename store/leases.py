"""Who may write about a running job: the holder of its newest lease, and nobody else."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.errors import Fenced, NotFound
from store.tables import Job


def lock(session: Session, job_id: str) -> Job:
    """The job as it is now, locked until the transaction ends. Raises NotFound."""
    session.flush()
    query = select(Job).where(Job.id == job_id).with_for_update()
    job = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise NotFound("job", job_id)
    return job


def fence(session: Session, job_id: str, lease_epoch: int) -> Job:
    """The job, locked, if this lease is still the one that runs it.

    Every write of a trainer stands behind this in the same transaction, so that the runs of a job
    never mix, however late a stopped process wakes up. Raises Fenced.
    """
    try:
        job = lock(session, job_id)
    except NotFound:
        raise Fenced(f"Job {job_id} was deleted.") from None
    if job.status != "running" or job.lease_epoch != lease_epoch:
        raise Fenced(f"Job {job_id} is no longer run by lease {lease_epoch}.")
    return job
