"""The tables: columns, constraints and indices, nothing else."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.columns import Json, Moment, Object

TERMINAL = ("succeeded", "failed", "cancelled")
"""The statuses a job never leaves."""


class Row(DeclarativeBase):
    """A row of any table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        str: Text,
        bytes: LargeBinary,
        datetime: Moment,
        Object: Json,
        list[Any]: Json,
    }


def _one_of(column: str, *values: str) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


def _only(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of those rows alone that `where` names."""
    condition = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


class Project(Row):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class ApiKey(Row):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Reply(Row):
    """What a request with an idempotency key was answered; the answer is null while it is worked on."""

    __tablename__ = "replies"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[Object | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Blob(Row):
    """Bytes by the SHA-256 of their content; seen by nobody before they are complete."""

    __tablename__ = "blobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    complete: Mapped[bool]
    touched_at: Mapped[datetime] = mapped_column(index=True)


class BlobChunk(Row):
    __tablename__ = "blob_chunks"

    blob_id: Mapped[str] = mapped_column(
        ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True
    )
    n: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class Dataset(Row):
    __tablename__ = "datasets"
    __table_args__ = (
        _one_of("status", "checking", "ready", "invalid"),
        Index(None, "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    task: Mapped[str]
    status: Mapped[str]
    options: Mapped[Object]
    schema: Mapped[Object]
    report: Mapped[Object]
    splits: Mapped[Object]
    errors: Mapped[list[Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class DatasetFile(Row):
    __tablename__ = "dataset_files"

    dataset_id: Mapped[str] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True
    )
    split: Mapped[str] = mapped_column(primary_key=True)
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)


class Pretrained(Row):
    """A published checkpoint that was uploaded, in the layout of the Hugging Face Hub."""

    __tablename__ = "pretrained"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    model_type: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class PretrainedFile(Row):
    __tablename__ = "pretrained_files"

    pretrained_id: Mapped[str] = mapped_column(
        ForeignKey("pretrained.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)


class Job(Row):
    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("kind", "train", "evaluate", "predict", "advise", "export"),
        _one_of("status", "queued", "running", "paused", *TERMINAL),
        _one_of("desired", "cancel", "stop", "pause"),
        CheckConstraint("(status = 'running') = (lease_owner IS NOT NULL)", name="lease_owner"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease_until"),
        CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="finished_at",
        ),
        Index(None, "project_id", "id"),
        Index(None, "project_id", "status", "id"),
        Index(None, "project_id", "task", "id"),
        _only("ix_jobs_ready", "queue", "priority", "created_at", where="status = 'queued'"),
        _only("ix_jobs_leases", "lease_until", where="status = 'running'"),
        _only("ix_jobs_owners", "lease_owner", where="status = 'running'", unique=True),
        Index("ix_jobs_trials", "sweep_id", "trial", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    name: Mapped[str]
    dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="SET NULL"), index=True
    )
    dataset_name: Mapped[str | None]
    task: Mapped[str]
    spec: Mapped[Object]
    request: Mapped[Object]
    base: Mapped[Object | None]
    # Without foreign keys, as checkpoints name their jobs: `checkpoints.hold` guards them.
    base_checkpoint_id: Mapped[str | None]
    resume_checkpoint_id: Mapped[str | None]
    parent_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    status: Mapped[str]
    desired: Mapped[str | None]
    priority: Mapped[int]
    queue: Mapped[str]
    devices: Mapped[int] = mapped_column(server_default="1")
    """How many it trains on, all of one worker process."""
    budget_seconds: Mapped[float | None]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    claims: Mapped[int]
    lease_epoch: Mapped[int] = mapped_column(BigInteger)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    worker_id: Mapped[str | None]
    available_at: Mapped[datetime]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    progress: Mapped[Object]
    metrics: Mapped[Object]
    result: Mapped[Object | None]
    error: Mapped[Object | None]
    model_name: Mapped[str | None]
    model_id: Mapped[str | None] = mapped_column(
        ForeignKey("models.id", ondelete="SET NULL"), index=True
    )
    model_version: Mapped[int | None]
    webhook: Mapped[Object | None]
    profile: Mapped[Object | None]
    event_seq: Mapped[int]
    log_seq: Mapped[int]
    # Without a foreign key, which SQLite adds to no table that is there: `sweeps.delete` takes trials along.
    sweep_id: Mapped[str | None]
    """The sweep that it is a trial of."""
    trial: Mapped[int | None]
    """Its number among the trials of the sweep, from 0."""
    parameters: Mapped[Object | None]
    """{path in the request: the value that the sweep chose}"""
    pruned: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether its sweep stopped it early, as one that is not to become the best."""


class Sweep(Row):
    """A search for the best values of some fields of a request; its trials are jobs."""

    __tablename__ = "sweeps"
    __table_args__ = (
        _one_of("status", "running", *TERMINAL),
        _one_of("desired", "cancel", "stop"),
        CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished_at"),
        Index(None, "project_id", "id"),
        _only("ix_sweeps_running", "id", where="status = 'running'"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="SET NULL"), index=True
    )
    dataset_name: Mapped[str | None]
    task: Mapped[str]
    request: Mapped[Object]
    """What a job without the sweep's choices would be asked for."""
    base: Mapped[Object | None]
    base_checkpoint_id: Mapped[str | None]
    metric: Mapped[str]
    maximise: Mapped[bool]
    space: Mapped[Object]
    sampler: Mapped[Object]
    pruner: Mapped[Object]
    seed: Mapped[int]
    trials: Mapped[int]
    """How many there are to be."""
    parallel: Mapped[int]
    made: Mapped[int]
    """How many there have been, and so the number of the next one."""
    status: Mapped[str]
    desired: Mapped[str | None]
    priority: Mapped[int]
    queue: Mapped[str]
    devices: Mapped[int]
    budget_seconds: Mapped[float | None]
    webhook: Mapped[Object | None]
    profile: Mapped[Object | None]
    best: Mapped[Object | None]
    importances: Mapped[Object | None]
    error: Mapped[Object | None]
    model_id: Mapped[str | None] = mapped_column(
        ForeignKey("models.id", ondelete="SET NULL"), index=True
    )
    model_version: Mapped[int | None]
    kept_until: Mapped[datetime | None]
    """Until when a keeper has it in hand."""
    seen: Mapped[str | None]
    """The state, as `sweeps.state` says it, in which a keeper found nothing left to do."""
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class JobEvent(Row):
    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    type: Mapped[str]
    data: Mapped[Object]


class Delivery(Row):
    """An event on its way to the webhook of its job; with all the others, the outbox."""

    __tablename__ = "deliveries"
    __table_args__ = (
        _one_of("status", "pending", "delivered", "failed"),
        CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)", name="next_attempt_at"
        ),
        CheckConstraint("(status = 'delivered') = (delivered_at IS NOT NULL)", name="delivered_at"),
        UniqueConstraint("job_id", "seq"),
        Index(None, "project_id", "id"),
        Index(None, "project_id", "status", "id"),
        _only("ix_deliveries_due", "next_attempt_at", where="status = 'pending'"),
        _only("ix_deliveries_pending", "job_id", "seq", where="status = 'pending'"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    seq: Mapped[int]
    """The event's number among those of its job."""
    url: Mapped[str]
    type: Mapped[str]
    data: Mapped[Object]
    status: Mapped[str]
    attempts: Mapped[int]
    claims: Mapped[int]
    """Attempts ever begun: whoever writes how one ended names it, so that a late one writes nothing."""
    next_attempt_at: Mapped[datetime | None]
    """While an attempt is under way, when its sender will be taken for lost."""
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(index=True)
    delivered_at: Mapped[datetime | None]


class WebhookSecret(Row):
    """What signs a project's messages: the present secret, and ones that still sign beside it."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        _only("ix_webhook_secrets_present", "project_id", where="expires_at IS NULL", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    secret: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class JobLog(Row):
    __tablename__ = "job_logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    level: Mapped[str]
    line: Mapped[str]


class JobArtifact(Row):
    """A file that a job has made besides what it learned."""

    __tablename__ = "job_artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str]
    media_type: Mapped[str]
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class MetricBlock(Row):
    """Consecutive points of a metric such as train/loss, packed as `store.metrics` says."""

    __tablename__ = "metric_blocks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    first_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    points: Mapped[bytes]


class Checkpoint(Row):
    """A trained state that can be read alone, even when its job is gone."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        _only("ix_checkpoints_best", "job_id", where="is_best", unique=True),
        _only("ix_checkpoints_last", "job_id", where="is_last", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    step: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int]
    metrics: Mapped[Object]
    value: Mapped[float | None]
    is_best: Mapped[bool]
    is_last: Mapped[bool]
    weights_blob: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)
    codec_blob: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)
    state_blob: Mapped[str | None] = mapped_column(ForeignKey("blobs.id"), index=True)
    state: Mapped[Object]
    spec: Mapped[Object]
    created_at: Mapped[datetime]


class Model(Row):
    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "name"), Index(None, "project_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    last_version: Mapped[int]
    """The highest version ever given, so that none is given twice."""
    created_at: Mapped[datetime]


class ModelVersion(Row):
    __tablename__ = "model_versions"

    model_id: Mapped[str] = mapped_column(
        ForeignKey("models.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    checkpoint_id: Mapped[str] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="RESTRICT"), index=True
    )
    created_at: Mapped[datetime]


class ModelAlias(Row):
    __tablename__ = "model_aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "version"],
            ["model_versions.model_id", "model_versions.version"],
            ondelete="CASCADE",
        ),
        Index(None, "model_id", "version"),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]


class Worker(Row):
    __tablename__ = "workers"
    __table_args__ = (_one_of("status", "idle", "busy", "draining"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    device_name: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_free_bytes: Mapped[int | None] = mapped_column(BigInteger)
    queues: Mapped[list[Any]]
    slots: Mapped[int]
    """Jobs it runs at the same time; none while its device is lent to another one's job."""
    devices: Mapped[int] = mapped_column(server_default="1")
    """The most that one job can have here, those of the same process's other workers among them."""
    busy_job_id: Mapped[str | None]
    status: Mapped[str]
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
