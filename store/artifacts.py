"""Files that jobs have made besides what they learned, such as a profile."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store import blobs, events, ids, leases, pages
from store.errors import NotFound
from store.session import now
from store.tables import JobArtifact


def add(
    session: Session, job_id: str, lease_epoch: int, *, name: str, media_type: str, blob_id: str
) -> JobArtifact:
    """Keep a stored blob with a running job; an artifact of this `name` from before gives way.

    Raises Fenced, and NotFound when the blob was swept.
    """
    job = leases.fence(session, job_id, lease_epoch)
    session.execute(
        delete(JobArtifact).where(JobArtifact.job_id == job_id, JobArtifact.name == name)
    )
    artifact = JobArtifact(
        id=ids.new("art"),
        job_id=job_id,
        name=name,
        media_type=media_type,
        blob_id=blob_id,
        size=blobs.size(session, blob_id),
        created_at=now(session),
    )
    session.add(artifact)
    data = {"artifact": artifact.id, "name": name, "size_bytes": artifact.size}
    events.append(session, job, "artifact", data)
    session.flush()
    return artifact


def get(session: Session, job_id: str, name: str) -> JobArtifact:
    """Raises NotFound."""
    query = select(JobArtifact).where(JobArtifact.job_id == job_id, JobArtifact.name == name)
    found = session.scalars(query).one_or_none()
    if found is None:
        raise NotFound("artifact", name)
    return found


def page(
    session: Session, job_id: str, limit: int = 20, after: str | None = None
) -> pages.Page[JobArtifact]:
    """The job's artifacts, newest first."""
    query = select(JobArtifact).where(JobArtifact.job_id == job_id)
    return pages.newest_first(session, query, JobArtifact.id, limit, after)
