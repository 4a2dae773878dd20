"""Webhooks: where a job's events go, the outbox they wait in, the secrets that sign them."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", json("webhook", nullable=True))
    create_deliveries()
    create_webhook_secrets()


def downgrade() -> None:
    op.drop_table("webhook_secrets")
    op.drop_table("deliveries")
    op.drop_column("jobs", "webhook")


def create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), primary_key=True),
        text("project_id", sa.ForeignKey("projects.id")),
        text("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE")),
        integer("seq"),
        text("url"),
        text("type"),
        json("data"),
        text("status"),
        integer("attempts"),
        integer("claims"),
        moment("next_attempt_at", nullable=True),
        integer("last_status", nullable=True),
        text("last_error", nullable=True),
        moment("created_at"),
        moment("delivered_at", nullable=True),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        sa.CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)", name="next_attempt_at"
        ),
        sa.CheckConstraint(
            "(status = 'delivered') = (delivered_at IS NOT NULL)", name="delivered_at"
        ),
        sa.UniqueConstraint("job_id", "seq"),
    )
    index("deliveries", "project_id", "id")
    index("deliveries", "project_id", "status", "id")
    index("deliveries", "created_at")
    pending = "status = 'pending'"
    index_some("ix_deliveries_due", "deliveries", "next_attempt_at", where=pending)
    index_some("ix_deliveries_pending", "deliveries", "job_id", "seq", where=pending)


def create_webhook_secrets() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.Text(), primary_key=True),
        text("project_id", sa.ForeignKey("projects.id")),
        text("secret"),
        moment("created_at"),
        moment("expires_at", nullable=True),
    )
    index("webhook_secrets", "project_id")
    index_some(
        "ix_webhook_secrets_present",
        "webhook_secrets",
        "project_id",
        where="expires_at IS NULL",
        unique=True,
    )


def text(name: str, *constraints: sa.ForeignKey, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), *constraints, nullable=nullable)


def integer(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=nullable)


def moment(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    kind = sa.JSON().with_variant(JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=nullable)


def index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)


def index_some(name: str, table: str, *columns: str, where: str, unique: bool = False) -> None:
    """An index of those rows alone that `where` names."""
    rows = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=rows, postgresql_where=rows)
