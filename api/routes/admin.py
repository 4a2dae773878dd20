"""What the people who run the service look after: workers, the queue, keys, projects, storage."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.auth import Admin, Keys
from api.dependencies import CurrentDatabase, Reading, Writing
from api.errors import documented
from api.replies import Once
from api.schemas import After, Limit, PageOut, page_out
from models.parts.options import Plain
from store import blobs, jobs, keys, projects, queues, storage, workers
from store.session import Database
from store.tables import ApiKey, Worker
from tasks.parts.problems import Invalid, Problem

router = APIRouter(prefix="/v1", tags=["admin"])

Scope = Literal["admin", "train", "predict"]
_Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,100}$")]


class WorkerOut(BaseModel):
    """A worker and its device."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Its id.")
    host: str = Field(description="The machine it is on.")
    pid: int = Field(description="Its process there.")
    device: str = Field(description="What it trains on.")
    device_name: str = Field(description="What that is called.")
    memory_bytes: int = Field(description="Memory of the device.")
    memory_free_bytes: int | None = Field(description="How much of it is free.")
    queues: list[str] = Field(description="The queues it takes jobs from.")
    slots: int = Field(
        description="Jobs it runs at the same time; 0 while its device helps with another worker's job."
    )
    devices: int = Field(description="The most devices that one job can have here.")
    busy_job_id: str | None = Field(description="The job it runs now.")
    status: Literal["idle", "busy", "draining"] = Field(description="What it is doing.")
    alive: bool = Field(description="Whether it was heard of in the last seconds.")
    started_at: datetime = Field(description="When it started.")
    last_seen_at: datetime = Field(description="When it was heard of last.")


class QueueOut(BaseModel):
    """A queue's load."""

    name: str = Field(description="Its name.")
    queued: int = Field(description="Jobs that wait in it.")
    oldest_seconds: float = Field(description="How long the oldest has waited.")
    workers: int = Field(description="Workers alive that take jobs from it.")
    free_slots: int = Field(description="Jobs these could start now.")


class WaitingOut(BaseModel):
    """A job that waits."""

    job: str = Field(description="Its id.")
    name: str = Field(description="Its name.")
    queue: str = Field(description="Its queue.")
    priority: int = Field(description="Its priority.")
    reason: str = Field(description="Why it waits.")


class QueuesOut(BaseModel):
    """Every queue, and the jobs that have waited longest."""

    queues: list[QueueOut] = Field(description="Every queue that has jobs or workers.")
    waiting: list[WaitingOut] = Field(description="This project's queued jobs, newest first.")


class KeyCreate(Plain):
    """Whom a key is for, and what it may do."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "notebook", "scopes": ["train"]}]}
    )

    name: _Name = Field(description="Who or what uses it.")
    scopes: list[Scope] = Field(
        min_length=1,
        max_length=3,
        description="`admin` may do everything, `train` all but administration, `predict` predictions.",
    )
    project: str | None = Field(
        None, max_length=100, description="The project's id; your own if left out."
    )
    expires_at: AwareDatetime | None = Field(None, description="From when on it opens nothing.")


class KeyOut(BaseModel):
    """A key without its text."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Its id.")
    name: str = Field(description="Who or what uses it.")
    project: str = Field(
        validation_alias=AliasChoices("project_id", "project"),
        description="The project it opens.",
    )
    prefix: str = Field(description="How its text begins.")
    scopes: list[Scope] = Field(description="What it may do.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(description="From when on it opens nothing.")
    revoked_at: datetime | None = Field(description="When it was revoked.")
    last_used_at: datetime | None = Field(description="When it was used last, to the minute.")


class NewKeyOut(KeyOut):
    """A new key. This is the only time its text is shown."""

    key: str | None = Field(
        None,
        description="Send it as `Authorization: Bearer KEY`. Null when the answer is a repeated one: "
        "the text is kept nowhere. If you never got it, revoke this key and make another.",
    )


class ProjectCreate(Plain):
    """A new project."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "research"}]})

    name: _Name = Field(description="Its name; a project of this name is given if there is one.")


class ProjectOut(BaseModel):
    """A project: data sets, jobs and models that only its own keys open."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Its id.")
    name: str = Field(description="Its name.")
    created_at: datetime = Field(description="When it was made.")


class StorageOut(BaseModel):
    """Bytes kept, and for what; what two kinds share counts in each, but once in `blob_bytes`."""

    dataset_bytes: int = Field(description="Data sets.")
    checkpoint_bytes: int = Field(description="Checkpoints and models.")
    artifact_bytes: int = Field(description="Artifacts of jobs.")
    blob_bytes: int = Field(description="All of it.")
    blob_count: int = Field(description="Files all of it is in.")
    orphan_bytes: int = Field(description="What nothing refers to, and a clean-up would free.")


class CleanUpOut(BaseModel):
    """What a clean-up did."""

    freed_bytes: int = Field(description="Bytes given back.")


@router.get("/workers", response_model=PageOut[WorkerOut], summary="List workers")
def list_workers(_: Admin, session: Reading) -> Any:
    """Every worker that was heard of lately."""
    alive = {worker.id for worker in workers.all(session, workers.SEEN_WITHIN_SECONDS)}
    rows = workers.all(session)
    return {"data": [{**_columns(row), "alive": row.id in alive} for row in rows]}


@router.get("/queue", summary="Show the queues")
def get_queue(principal: Admin, session: Reading) -> QueuesOut:
    """How many jobs wait, how long, and why."""
    depths = queues.depths(session)
    serving = {queue for worker in workers.open_for(session, None) for queue in worker.queues}
    queued = jobs.page(session, principal.project_id, 100, status="queued").rows
    return QueuesOut(
        queues=[
            QueueOut(
                name=name,
                queued=depths[name]["queued"] if name in depths else 0,
                oldest_seconds=depths[name]["oldest_seconds"] if name in depths else 0,
                workers=len(workers.open_for(session, name)),
                free_slots=workers.free_slots(session, queue=name),
            )
            for name in sorted(depths.keys() | serving)
        ],
        waiting=[
            WaitingOut(
                job=job.id,
                name=job.name,
                queue=job.queue,
                priority=job.priority,
                reason=queues.waiting(session, job),
            )
            for job in queued
        ],
    )


@router.post("/keys", status_code=201, summary="Make a key", responses=documented(404))
def create_key(
    response: Response, principal: Admin, session: Writing, once: Once, body: KeyCreate
) -> NewKeyOut:
    """A new key for a project. Its text is in this answer and nowhere else.

    So a request that is repeated with its `Idempotency-Key` gets the key that it made, without the text.
    """

    def create() -> NewKeyOut:
        return _new_key(session, principal.project_id, body)

    key = once(session, body, NewKeyOut, create, secrets={"key"})
    response.headers["Location"] = f"/v1/keys/{key.id}"
    return key


def _new_key(session: Session, project_id: str, body: KeyCreate) -> NewKeyOut:
    """Raises NotFound, and Invalid when it would have expired already."""
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise Invalid(Problem(("expires_at",), "is in the past", str(body.expires_at)))
    project = projects.get(session, body.project or project_id)
    key, plain = keys.create(
        session, project.id, body.name, sorted(set(body.scopes)), expires_at=body.expires_at
    )
    return NewKeyOut.model_validate({**_columns(key), "key": plain})


@router.get("/keys", response_model=PageOut[KeyOut], summary="List keys")
def list_keys(
    _: Admin,
    session: Reading,
    limit: Limit = 20,
    after: After = None,
    project: Annotated[str | None, Query(description="Only those of this project.")] = None,
) -> Any:
    """Every key, newest first, without its text."""
    return page_out(keys.page(session, limit, after, project), KeyOut.model_validate)


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke a key", responses=documented(404))
def revoke_key(request: Request, _: Admin, session: Writing, key_id: str) -> None:
    """The key opens nothing any more; other API processes notice within seconds."""
    keys.revoke(session, key_id)
    known: Keys = request.app.state.keys
    known.forget(key_id)


@router.post("/projects", status_code=201, summary="Make a project")
def create_project(_: Admin, session: Writing, once: Once, body: ProjectCreate) -> ProjectOut:
    """A project keeps its data sets, jobs and models apart from those of others."""

    def create() -> ProjectOut:
        return ProjectOut.model_validate(projects.ensure(session, body.name))

    return once(session, body, ProjectOut, create)


@router.get("/projects", response_model=PageOut[ProjectOut], summary="List projects")
def list_projects(_: Admin, session: Reading, limit: Limit = 20, after: After = None) -> Any:
    """Every project, newest first."""
    return page_out(projects.page(session, limit, after), ProjectOut.model_validate)


@router.get("/storage", summary="Show what is stored")
def get_storage(_: Admin, session: Reading) -> StorageOut:
    """How many bytes are kept, and for what."""
    return StorageOut.model_validate(storage.usage(session))


@router.post("/storage/clean-up", summary="Free what nothing refers to")
def clean_up_storage(_: Admin, database: CurrentDatabase) -> CleanUpOut:
    """Deletes stored files that nothing refers to and that are older than an hour."""
    total = freed = _sweep(database)
    while freed:
        freed = _sweep(database)
        total += freed
    return CleanUpOut(freed_bytes=total)


def _sweep(database: Database) -> int:
    with database.transaction() as session:
        return blobs.sweep(session)


def _columns(row: ApiKey | Worker) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}
