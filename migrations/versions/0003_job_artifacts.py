"""Profiles: which steps of a job are recorded, and the artifacts that it makes of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    op.add_column("jobs", sa.Column("profile", json, nullable=True))
    op.create_table(
        "job_artifacts",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column(
            "job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("blob_id", sa.Text(), sa.ForeignKey("blobs.id"), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("job_id", "name"),
    )
    op.create_index("ix_job_artifacts_blob_id", "job_artifacts", ["blob_id"])


def downgrade() -> None:
    op.drop_table("job_artifacts")
    op.drop_column("jobs", "profile")
