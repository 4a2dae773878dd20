"""Files that jobs have made besides what they learned, such as a profile."""

from collections.abc import Mapping

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from store import blobs, events, ids, leases, pages
from store.errors import NotFound
from store.session import now
from store.tables import Job, JobArtifact

PARQUET = "application/vnd.apache.parquet"
INPUTS = "inputs.parquet"
"""The inputs of a batch prediction that came as a file, there from the start."""
_PART, _SAMPLES = "part-", "samples-"


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
    return keep(session, job, name, media_type, blob_id)


def add_all(
    session: Session,
    job_id: str,
    lease_epoch: int,
    stored: Mapping[str, str],
    media_types: Mapping[str, str],
) -> None:
    """Like `add`, for blobs by name, whose media types are among these."""
    for name, blob_id in stored.items():
        add(
            session,
            job_id,
            lease_epoch,
            name=name,
            media_type=media_types[name],
            blob_id=blob_id,
        )


def keep(session: Session, job: Job, name: str, media_type: str, blob_id: str) -> JobArtifact:
    """Like `add`, for who has the job locked and no artifact of this name in it. Raises NotFound."""
    artifact = JobArtifact(
        id=ids.new("art"),
        job_id=job.id,
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


def inputs(session: Session, job_id: str) -> str | None:
    """The blob with the inputs of a batch prediction, if they came as a file."""
    query = select(JobArtifact.blob_id).where(
        JobArtifact.job_id == job_id, JobArtifact.name == INPUTS
    )
    return session.scalars(query).one_or_none()


def page(
    session: Session, job_id: str, limit: int = 20, after: str | None = None
) -> pages.Page[JobArtifact]:
    """The job's artifacts, newest first."""
    query = select(JobArtifact).where(JobArtifact.job_id == job_id)
    return pages.newest_first(session, query, JobArtifact.id, limit, after)


def samples_of(epoch: int) -> str:
    """The name of the predictions that show what a training knew after so many epochs."""
    return f"{_SAMPLES}{epoch:06}.json"


def newest_samples(session: Session, job_id: str) -> JobArtifact:
    """Those of the last epoch that has some. Raises NotFound."""
    query = (
        select(JobArtifact)
        .where(JobArtifact.job_id == job_id, JobArtifact.name.startswith(_SAMPLES, autoescape=True))
        .order_by(JobArtifact.name.desc())
        .limit(1)
    )
    found = session.scalars(query).one_or_none()
    if found is None:
        raise NotFound("samples of the job", job_id)
    return found


def add_part(
    session: Session, job_id: str, lease_epoch: int, *, start: int, stop: int, blob_id: str
) -> JobArtifact:
    """Keep what a batch prediction has for the inputs [start, stop). Raises Fenced and NotFound.

    Progress pays attempts back, as a checkpoint of a training does.
    """
    leases.fence(session, job_id, lease_epoch).attempt = 1
    name = f"{_PART}{start:012}-{stop:012}.parquet"
    return add(session, job_id, lease_epoch, name=name, media_type=PARQUET, blob_id=blob_id)


def parts(session: Session, job_id: str) -> list[tuple[int, str]]:
    """(stop, blob id) of each part of an unfinished batch prediction, in order."""
    query = select(JobArtifact).where(_parts_of(job_id)).order_by(JobArtifact.name)
    return [
        (int(row.name.removesuffix(".parquet").rpartition("-")[2]), row.blob_id)
        for row in session.scalars(query)
    ]


def drop_parts(session: Session, job_id: str) -> None:
    """Let the parts go: they were put together, or nobody wants them."""
    session.execute(delete(JobArtifact).where(_parts_of(job_id)))


def _parts_of(job_id: str) -> ColumnElement[bool]:
    return (JobArtifact.job_id == job_id) & JobArtifact.name.startswith(_PART, autoescape=True)
