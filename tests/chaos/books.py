"""What the database must say once everything has ended, of each job and of all together."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import blobs, storage, workers
from store.errors import NotFound
from store.session import Database
from store.tables import (
    TERMINAL,
    BlobChunk,
    Checkpoint,
    Dataset,
    Job,
    JobEvent,
    JobLog,
    Model,
    ModelVersion,
)

_MOVES: dict[str | None, set[str]] = {
    None: {"queued"},
    "queued": {"running", "paused", "cancelled", "succeeded"},
    "running": {"running", "queued", "paused", *TERMINAL},
    "paused": {"queued", "cancelled", "succeeded"},
    **{status: set() for status in TERMINAL},
}
_SHOWN = {"pausing": "running", "cancelling": "running"}


class Books(NamedTuple):
    """Every job with its events, in order."""

    jobs: dict[str, Job]
    events: dict[str, list[JobEvent]]

    @classmethod
    def of(cls, database: Database) -> "Books":
        with database.transaction(read_only=True) as session:
            jobs = {job.id: job for job in session.scalars(select(Job))}
            events: dict[str, list[JobEvent]] = {job_id: [] for job_id in jobs}
            for event in session.scalars(select(JobEvent).order_by(JobEvent.seq)):
                events[event.job_id].append(event)
        return cls(jobs, events)

    @property
    def runs(self) -> int:
        """How often a job was claimed."""
        return sum(job.lease_epoch for job in self.jobs.values())

    @property
    def waits(self) -> list[float]:
        """For each run that did not end its job: seconds from there to the next run."""
        found = []
        for events in self.events.values():
            given_back: datetime | None = None
            for event in (e for e in events if e.type == "status"):
                if event.data["status"] == "queued" and event.seq > 1:
                    given_back = event.at
                elif "attempt" in event.data and given_back is not None:
                    found.append((event.at - given_back).total_seconds())
                    given_back = None
        return sorted(found)


def of_events(job: Job, events: Sequence[JobEvent]) -> Iterator[str]:
    """Numbered without gaps, each status following from the one before, one end, no step backwards."""
    numbers = [event.seq for event in events]
    if numbers != list(range(1, job.event_seq + 1)):
        yield f"{job.id}: events are numbered {numbers}"
    status: str | None = None
    for event in events:
        if event.type != "status":
            continue
        shown = event.data["status"]
        new = _SHOWN.get(shown, shown)
        claimed = "attempt" in event.data
        if new not in _MOVES[status] or claimed is not (new == "running" != status):
            yield f"{job.id}: event {event.seq} goes from {status} to {shown}"
        status = new
    if status != job.status or status not in TERMINAL:
        yield f"{job.id}: is {job.status}, its last event says {status}"
    claims = sum("attempt" in event.data for event in events)
    if claims != job.lease_epoch:
        yield f"{job.id}: {claims} runs, but its lease was taken {job.lease_epoch} times"
    steps = [event.data["step"] for event in events if event.type == "checkpoint"]
    if steps != sorted(steps):
        yield f"{job.id}: checkpoints go back: {steps}"


def of_rows(session: Session, job: Job) -> Iterator[str]:
    """What a job leaves behind: its model if it succeeded, no checkpoint if it was cancelled, its log."""
    versions = _count(session, ModelVersion, ModelVersion.job_id == job.id)
    if versions != (job.status == "succeeded" and job.kind == "train"):
        yield f"{job.id}: {job.status} with {versions} model versions"
    kept = _count(session, Checkpoint, Checkpoint.job_id == job.id)
    if job.status == "cancelled" and kept:
        yield f"{job.id}: cancelled, but {kept} checkpoints are kept"
    if kept > 2:
        yield f"{job.id}: {kept} checkpoints are kept"
    query = select(JobLog.seq).where(JobLog.job_id == job.id).order_by(JobLog.seq)
    lines = list(session.scalars(query))
    if lines != list(range(1, job.log_seq + 1)):
        yield f"{job.id}: log lines are numbered {lines}"


def of_models(session: Session) -> Iterator[str]:
    """Versions are numbered without gaps."""
    for model in session.scalars(select(Model)):
        query = select(ModelVersion.version).where(ModelVersion.model_id == model.id)
        numbers = sorted(session.scalars(query))
        if numbers != list(range(1, model.last_version + 1)):
            yield f"model {model.name}: versions are {numbers}"


def of_datasets(database: Database, made: set[str]) -> Iterator[str]:
    """Those that were made, and no other."""
    with database.transaction(read_only=True) as session:
        there = set(session.scalars(select(Dataset.id)))
    if there != made:
        yield f"{len(made)} data sets were made, {len(there)} are there: {sorted(there ^ made)}"


def of_workers(database: Database, alive: int, within: float) -> Iterator[str]:
    """Those alive, and only they, are seen, and are idle."""
    with database.transaction(read_only=True) as session:
        seen = workers.all(session, within)
    if len(seen) != alive or any(row.status != "idle" or row.busy_job_id for row in seen):
        told = [f"{row.id} {row.status} {row.busy_job_id}" for row in seen]
        yield f"{alive} idle workers are alive, but seen are {told}"


def of_bytes(database: Database) -> Iterator[str]:
    """After a sweep every blob is referred to, and whole."""
    with database.transaction() as session:
        while blobs.sweep(session, 0):
            pass
    with database.transaction(read_only=True) as session:
        usage = storage.usage(session)
        if usage["orphan_bytes"]:
            yield f"{usage['orphan_bytes']} orphan bytes are left after a sweep"
        lost = _count(session, BlobChunk, BlobChunk.blob_id.not_in(blobs.references()))
        if lost:
            yield f"{lost} chunks of blobs that nothing refers to"
        referred = list(session.scalars(select(blobs.references().subquery())))
    yield from (
        f"blob {blob_id} is damaged" for blob_id in referred if not _is_whole(database, blob_id)
    )


def _is_whole(database: Database, blob_id: str) -> bool:
    digest = hashlib.sha256()
    try:
        for data in blobs.read(database, blob_id):
            digest.update(data)
    except NotFound:
        return False
    return digest.hexdigest() == blob_id


def _count(session: Session, table: type, condition: object) -> int:
    query = select(func.count()).select_from(table).where(condition)  # type: ignore[arg-type]
    return session.execute(query).scalar_one()
