"""Sweeps, and the trials among the jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"

STATUSES = "'running', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "sweeps",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), sa.ForeignKey("datasets.id", ondelete="SET NULL")),
        sa.Column("dataset_name", sa.Text()),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("request", json, nullable=False),
        sa.Column("base", json),
        sa.Column("base_checkpoint_id", sa.Text()),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("maximise", sa.Boolean(), nullable=False),
        sa.Column("space", json, nullable=False),
        sa.Column("sampler", json, nullable=False),
        sa.Column("pruner", json, nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("parallel", sa.Integer(), nullable=False),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("desired", sa.Text()),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("budget_seconds", sa.Double()),
        sa.Column("webhook", json),
        sa.Column("profile", json),
        sa.Column("best", json),
        sa.Column("importances", json),
        sa.Column("error", json),
        sa.Column("model_id", sa.Text(), sa.ForeignKey("models.id", ondelete="SET NULL")),
        sa.Column("model_version", sa.Integer()),
        sa.Column("kept_until", moment),
        sa.Column("seen", sa.Text()),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("finished_at", moment),
        sa.CheckConstraint(f"status IN ({STATUSES})", name="status"),
        sa.CheckConstraint("desired IN ('cancel', 'stop')", name="desired"),
        sa.CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished_at"),
    )
    op.create_index("ix_sweeps_project_id_id", "sweeps", ["project_id", "id"])
    op.create_index("ix_sweeps_dataset_id", "sweeps", ["dataset_id"])
    op.create_index("ix_sweeps_model_id", "sweeps", ["model_id"])
    running = sa.text("status = 'running'")
    op.create_index(
        "ix_sweeps_running", "sweeps", ["id"], sqlite_where=running, postgresql_where=running
    )
    op.add_column("jobs", sa.Column("sweep_id", sa.Text()))
    op.add_column("jobs", sa.Column("trial", sa.Integer()))
    op.add_column("jobs", sa.Column("parameters", json))
    false = sa.text("false")
    op.add_column("jobs", sa.Column("pruned", sa.Boolean(), nullable=False, server_default=false))
    op.create_index("ix_jobs_trials", "jobs", ["sweep_id", "trial"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_jobs_trials", "jobs")
    for column in ("pruned", "parameters", "trial", "sweep_id"):
        op.drop_column("jobs", column)
    op.drop_table("sweeps")
