"""Published checkpoints that were uploaded: a blob for each file of a folder in the Hub's layout."""

from collections.abc import Mapping

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.orm import Session

from store import ids, pages
from store.errors import Conflict, NotFound
from store.session import now
from store.tables import TERMINAL, Job, Pretrained, PretrainedFile, Sweep


def create(
    session: Session,
    project_id: str,
    *,
    name: str,
    model_type: str,
    size_bytes: int,
    files: Mapping[str, str],
) -> Pretrained:
    """A checkpoint with `files` {name in its folder: blob id}."""
    checkpoint = Pretrained(
        id=ids.new("pre"),
        project_id=project_id,
        name=name,
        model_type=model_type,
        size_bytes=size_bytes,
        created_at=now(session),
    )
    session.add(checkpoint)
    session.flush()
    for file, blob_id in files.items():
        session.add(PretrainedFile(pretrained_id=checkpoint.id, name=file, blob_id=blob_id))
    session.flush()
    return checkpoint


def get(session: Session, project_id: str, pretrained_id: str) -> Pretrained:
    """Raises NotFound, also for another project's."""
    checkpoint = session.get(Pretrained, pretrained_id)
    if checkpoint is None or checkpoint.project_id != project_id:
        raise NotFound("pretrained checkpoint", pretrained_id)
    return checkpoint


def files(session: Session, pretrained_id: str) -> dict[str, str]:
    """{name in its folder: blob id}. Raises NotFound."""
    query = select(PretrainedFile).where(PretrainedFile.pretrained_id == pretrained_id)
    found = {row.name: row.blob_id for row in session.scalars(query)}
    if not found:
        raise NotFound("pretrained checkpoint", pretrained_id)
    return found


def page(
    session: Session, project_id: str, limit: int = 20, after: str | None = None
) -> pages.Page[Pretrained]:
    query = select(Pretrained).where(Pretrained.project_id == project_id)
    return pages.newest_first(session, query, Pretrained.id, limit, after)


def delete(session: Session, project_id: str, pretrained_id: str) -> None:
    """Raises NotFound, and Conflict while a job or sweep begins with it; models made from it stay."""
    get(session, project_id, pretrained_id)
    place = Job.spec["task"]["architecture"]["checkpoint"].as_string()
    job = session.scalars(
        select(Job)
        .where(Job.project_id == project_id, Job.status.not_in(TERMINAL), place == pretrained_id)
        .limit(1)
    ).first()
    if job is not None:
        raise Conflict(f"{pretrained_id} is needed by job {job.id}, which is {job.status}.")
    searching = select(Sweep).where(Sweep.project_id == project_id, Sweep.status == "running")
    for sweep in session.scalars(searching):
        if pretrained_id in str((sweep.request, sweep.space)):
            raise Conflict(f"{pretrained_id} is needed by sweep {sweep.id}, which is running.")
    session.execute(delete_from(Pretrained).where(Pretrained.id == pretrained_id))
