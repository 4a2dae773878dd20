"""How many bytes are kept, and for what."""

from typing import Any, TypedDict

from sqlalchemy import CompoundSelect, Select, func, select, true, union
from sqlalchemy.orm import Session

from store import blobs
from store.tables import Blob, Checkpoint, Dataset, DatasetFile, Job, JobArtifact


class Usage(TypedDict):
    """Bytes and blobs; one that two kinds share counts in each, but once in `blob_bytes`."""

    dataset_bytes: int
    checkpoint_bytes: int
    artifact_bytes: int
    blob_bytes: int
    blob_count: int
    orphan_bytes: int


def usage(session: Session, project_id: str | None = None) -> Usage:
    """What one project uses, or all with what nobody refers to any more."""
    datasets, states, files, everything = (
        _of_datasets(project_id),
        _of_checkpoints(project_id),
        _of_artifacts(project_id),
        select(Blob),
    )
    orphans = everything.where(Blob.id.not_in(blobs.references()))
    used = everything.where(Blob.id.in_(datasets) | Blob.id.in_(states) | Blob.id.in_(files))
    count, total = _sum(session, everything if project_id is None else used)
    return Usage(
        dataset_bytes=_sum(session, everything.where(Blob.id.in_(datasets)))[1],
        checkpoint_bytes=_sum(session, everything.where(Blob.id.in_(states)))[1],
        artifact_bytes=_sum(session, everything.where(Blob.id.in_(files)))[1],
        blob_bytes=total,
        blob_count=count,
        orphan_bytes=_sum(session, orphans)[1] if project_id is None else 0,
    )


def _sum(session: Session, those: Select[Blob]) -> tuple[int, int]:
    """How many, and how many bytes."""
    query = those.with_only_columns(func.count(), func.coalesce(func.sum(Blob.size), 0))
    count, total = session.execute(query).one()
    return count, int(total)


def _of_datasets(project_id: str | None) -> Select[Any]:
    query = select(DatasetFile.blob_id).join(Dataset, Dataset.id == DatasetFile.dataset_id)
    return query if project_id is None else query.where(Dataset.project_id == project_id)


def _of_checkpoints(project_id: str | None) -> CompoundSelect[Any]:
    blob_columns = (Checkpoint.weights_blob, Checkpoint.codec_blob, Checkpoint.state_blob)
    mine = true() if project_id is None else Checkpoint.project_id == project_id
    return union(*(select(blob).where(blob.is_not(None), mine) for blob in blob_columns))


def _of_artifacts(project_id: str | None) -> Select[Any]:
    query = select(JobArtifact.blob_id).join(Job, Job.id == JobArtifact.job_id)
    return query if project_id is None else query.where(Job.project_id == project_id)
