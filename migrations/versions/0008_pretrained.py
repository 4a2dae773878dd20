"""Published checkpoints that were uploaded."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "pretrained",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_pretrained_project_id_id", "pretrained", ["project_id", "id"])
    op.create_table(
        "pretrained_files",
        sa.Column(
            "pretrained_id",
            sa.Text(),
            sa.ForeignKey("pretrained.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("blob_id", sa.Text(), sa.ForeignKey("blobs.id"), nullable=False),
    )
    op.create_index("ix_pretrained_files_blob_id", "pretrained_files", ["blob_id"])


def downgrade() -> None:
    op.drop_table("pretrained_files")
    op.drop_table("pretrained")
