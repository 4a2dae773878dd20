"""Projects and keys, blobs, data sets, jobs and what they write, models, workers."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

TABLES = (
    "projects",
    "api_keys",
    "replies",
    "blobs",
    "blob_chunks",
    "datasets",
    "dataset_files",
    "models",
    "jobs",
    "job_events",
    "job_logs",
    "metrics",
    "checkpoints",
    "model_versions",
    "model_aliases",
    "workers",
)


def upgrade() -> None:
    create_projects()
    create_blobs()
    create_datasets()
    create_models()
    create_jobs()
    create_job_writings()
    create_checkpoints()
    create_model_versions()
    create_workers()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)


def create_projects() -> None:
    op.create_table(
        "projects",
        key("id"),
        text("name", unique=True),
        moment("created_at"),
    )
    op.create_table(
        "api_keys",
        key("id"),
        text("project_id", refers("projects.id")),
        text("name"),
        text("prefix"),
        text("hash", unique=True),
        json("scopes"),
        moment("created_at"),
        moment("expires_at", nullable=True),
        moment("revoked_at", nullable=True),
        moment("last_used_at", nullable=True),
    )
    index("api_keys", "project_id")
    op.create_table(
        "replies",
        key("project_id", refers("projects.id")),
        key("key"),
        text("fingerprint"),
        integer("status", nullable=True),
        json("body", nullable=True),
        moment("created_at"),
    )
    index("replies", "created_at")


def create_blobs() -> None:
    op.create_table(
        "blobs",
        key("id"),
        big("size"),
        flag("complete"),
        moment("touched_at"),
    )
    index("blobs", "touched_at")
    op.create_table(
        "blob_chunks",
        key("blob_id", refers("blobs.id", "CASCADE")),
        sa.Column("n", sa.Integer(), primary_key=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Weights and Parquet files do not shrink; trying costs more than writing them.
        op.execute("ALTER TABLE blob_chunks ALTER COLUMN data SET STORAGE EXTERNAL")


def create_datasets() -> None:
    op.create_table(
        "datasets",
        key("id"),
        text("project_id", refers("projects.id")),
        text("name"),
        text("task"),
        text("status"),
        json("options"),
        json("schema"),
        json("report"),
        json("splits"),
        json("errors"),
        big("size_bytes"),
        moment("created_at"),
        sa.CheckConstraint("status IN ('checking', 'ready', 'invalid')", name="status"),
    )
    index("datasets", "project_id", "id")
    op.create_table(
        "dataset_files",
        key("dataset_id", refers("datasets.id", "CASCADE")),
        key("split"),
        text("blob_id", refers("blobs.id")),
    )
    index("dataset_files", "blob_id")


def create_models() -> None:
    op.create_table(
        "models",
        key("id"),
        text("project_id", refers("projects.id")),
        text("name"),
        integer("last_version"),
        moment("created_at"),
        sa.UniqueConstraint("project_id", "name"),
    )
    index("models", "project_id", "id")


def create_jobs() -> None:
    op.create_table(
        "jobs",
        key("id"),
        text("project_id", refers("projects.id")),
        text("kind"),
        text("name"),
        text("dataset_id", refers("datasets.id", "SET NULL"), nullable=True),
        text("dataset_name", nullable=True),
        text("task"),
        json("spec"),
        json("request"),
        json("base", nullable=True),
        text("base_checkpoint_id", nullable=True),
        text("resume_checkpoint_id", nullable=True),
        text("parent_id", refers("jobs.id", "SET NULL"), nullable=True),
        text("status"),
        text("desired", nullable=True),
        integer("priority"),
        text("queue"),
        sa.Column("budget_seconds", sa.Double(), nullable=True),
        integer("attempt"),
        integer("max_attempts"),
        integer("claims"),
        big("lease_epoch"),
        text("lease_owner", nullable=True),
        moment("lease_until", nullable=True),
        text("worker_id", nullable=True),
        moment("available_at"),
        moment("created_at"),
        moment("started_at", nullable=True),
        moment("finished_at", nullable=True),
        json("progress"),
        json("metrics"),
        json("result", nullable=True),
        json("error", nullable=True),
        text("model_name", nullable=True),
        text("model_id", refers("models.id", "SET NULL"), nullable=True),
        integer("model_version", nullable=True),
        integer("event_seq"),
        integer("log_seq"),
        sa.CheckConstraint("kind IN ('train', 'evaluate')", name="kind"),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')",
            name="status",
        ),
        sa.CheckConstraint("desired IN ('cancel', 'stop', 'pause')", name="desired"),
        sa.CheckConstraint("(status = 'running') = (lease_owner IS NOT NULL)", name="lease_owner"),
        sa.CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease_until"),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="finished_at",
        ),
    )
    index("jobs", "project_id", "id")
    index("jobs", "project_id", "status", "id")
    index("jobs", "project_id", "task", "id")
    index("jobs", "dataset_id")
    index("jobs", "parent_id")
    index("jobs", "model_id")
    index_some(
        "ix_jobs_ready", "jobs", "queue", "priority", "created_at", where="status = 'queued'"
    )
    index_some("ix_jobs_leases", "jobs", "lease_until", where="status = 'running'")
    index_some("ix_jobs_owners", "jobs", "lease_owner", where="status = 'running'", unique=True)


def create_job_writings() -> None:
    op.create_table(
        "job_events",
        key("job_id", refers("jobs.id", "CASCADE")),
        sa.Column("seq", sa.Integer(), primary_key=True),
        moment("at"),
        text("type"),
        json("data"),
    )
    op.create_table(
        "job_logs",
        key("job_id", refers("jobs.id", "CASCADE")),
        sa.Column("seq", sa.Integer(), primary_key=True),
        moment("at"),
        text("level"),
        text("line"),
    )
    op.create_table(
        "metrics",
        key("job_id", refers("jobs.id", "CASCADE")),
        sa.Column("step", sa.BigInteger(), primary_key=True),
        integer("epoch"),
        moment("at"),
        json("values"),
    )


def create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        key("id"),
        text("project_id", refers("projects.id")),
        text("job_id", refers("jobs.id", "SET NULL"), nullable=True),
        big("step"),
        integer("epoch"),
        json("metrics"),
        sa.Column("value", sa.Double(), nullable=True),
        flag("is_best"),
        flag("is_last"),
        text("weights_blob", refers("blobs.id")),
        text("codec_blob", refers("blobs.id")),
        text("state_blob", refers("blobs.id"), nullable=True),
        json("state"),
        json("spec"),
        moment("created_at"),
    )
    index("checkpoints", "job_id")
    index("checkpoints", "weights_blob")
    index("checkpoints", "codec_blob")
    index("checkpoints", "state_blob")
    index_some("ix_checkpoints_best", "checkpoints", "job_id", where="is_best", unique=True)
    index_some("ix_checkpoints_last", "checkpoints", "job_id", where="is_last", unique=True)


def create_model_versions() -> None:
    op.create_table(
        "model_versions",
        key("model_id", refers("models.id", "CASCADE")),
        sa.Column("version", sa.Integer(), primary_key=True),
        text("job_id", refers("jobs.id", "SET NULL"), nullable=True),
        text("checkpoint_id", refers("checkpoints.id", "RESTRICT")),
        moment("created_at"),
    )
    index("model_versions", "checkpoint_id")
    index("model_versions", "job_id")
    op.create_table(
        "model_aliases",
        key("model_id"),
        key("alias"),
        integer("version"),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["model_versions.model_id", "model_versions.version"],
            ondelete="CASCADE",
        ),
    )
    index("model_aliases", "model_id", "version")


def create_workers() -> None:
    op.create_table(
        "workers",
        key("id"),
        text("host"),
        integer("pid"),
        text("device"),
        text("device_name"),
        big("memory_bytes"),
        big("memory_free_bytes", nullable=True),
        json("queues"),
        integer("slots"),
        text("busy_job_id", nullable=True),
        text("status"),
        moment("started_at"),
        moment("last_seen_at"),
        sa.CheckConstraint("status IN ('idle', 'busy', 'draining')", name="status"),
    )


def key(name: str, *constraints: sa.ForeignKey) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), *constraints, primary_key=True)


def text(
    name: str, *constraints: sa.ForeignKey, nullable: bool = False, unique: bool = False
) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), *constraints, nullable=nullable, unique=unique)


def integer(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=nullable)


def big(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def moment(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    kind = sa.JSON().with_variant(JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=nullable)


def refers(column: str, ondelete: str | None = None) -> sa.ForeignKey:
    return sa.ForeignKey(column, ondelete=ondelete)


def index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)


def index_some(name: str, table: str, *columns: str, where: str, unique: bool = False) -> None:
    """An index of those rows alone that `where` names."""
    rows = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=rows, postgresql_where=rows)
