"""Data sets: checked once, stored as one Parquet blob per split."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.orm import Session

from store import ids, pages
from store.columns import Object
from store.errors import Conflict, NotFound
from store.session import now
from store.tables import TERMINAL, Dataset, DatasetFile, Job, Sweep


def create(
    session: Session,
    project_id: str,
    *,
    name: str,
    task: str,
    options: Object,
    schema: Object,
    report: Object,
    splits: Mapping[str, int],
    size_bytes: int,
    files: Mapping[str, str],
    status: str = "ready",
    errors: Sequence[Any] = (),
) -> Dataset:
    """A data set with `splits` {split: examples} and `files` {split: blob id}."""
    dataset = Dataset(
        id=ids.new("ds"),
        project_id=project_id,
        name=name,
        task=task,
        status=status,
        options=options,
        schema=schema,
        report=report,
        splits=dict(splits),
        errors=list(errors),
        size_bytes=size_bytes,
        created_at=now(session),
    )
    session.add(dataset)
    session.flush()
    for split, blob_id in files.items():
        session.add(DatasetFile(dataset_id=dataset.id, split=split, blob_id=blob_id))
    session.flush()
    return dataset


def get(session: Session, project_id: str, dataset_id: str) -> Dataset:
    """Raises NotFound, also for another project's data set."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.project_id != project_id:
        raise NotFound("dataset", dataset_id)
    return dataset


def load(session: Session, dataset_id: str) -> Dataset:
    """The data set of any project. Raises NotFound."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound("dataset", dataset_id)
    return dataset


def hold(session: Session, project_id: str, dataset_id: str) -> Dataset:
    """Like `get`, and the data set stays until the transaction ends."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.project_id == project_id)
    dataset = session.scalars(query.with_for_update(read=True, key_share=True)).one_or_none()
    if dataset is None:
        raise NotFound("dataset", dataset_id)
    return dataset


def files(session: Session, dataset_id: str) -> dict[str, str]:
    """{split: blob id}"""
    rows = session.scalars(select(DatasetFile).where(DatasetFile.dataset_id == dataset_id))
    return {row.split: row.blob_id for row in rows}


def page(
    session: Session,
    project_id: str,
    limit: int = 20,
    after: str | None = None,
    task: str | None = None,
) -> pages.Page[Dataset]:
    query = select(Dataset).where(Dataset.project_id == project_id)
    if task is not None:
        query = query.where(Dataset.task == task)
    return pages.newest_first(session, query, Dataset.id, limit, after)


def delete(session: Session, project_id: str, dataset_id: str) -> None:
    """Raises NotFound, and Conflict while a job or sweep needs it; finished ones keep its name alone."""
    get(session, project_id, dataset_id)
    # The lock comes first: from here on no new job can take the data set, so the look below is final.
    session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
    unfinished = select(Job).where(Job.dataset_id == dataset_id, Job.status.not_in(TERMINAL))
    job = session.scalars(unfinished.limit(1)).first()
    if job is not None:
        raise Conflict(f"Dataset {dataset_id} is needed by job {job.id}, which is {job.status}.")
    searching = select(Sweep.id).where(Sweep.dataset_id == dataset_id, Sweep.status == "running")
    sweep_id = session.scalars(searching.limit(1)).first()
    if sweep_id is not None:
        raise Conflict(f"Dataset {dataset_id} is needed by sweep {sweep_id}, which is running.")
    session.execute(delete_from(Dataset).where(Dataset.id == dataset_id))
