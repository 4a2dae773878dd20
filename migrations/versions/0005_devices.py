"""Devices: how many a job trains on, and how many a worker can give to one job."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = ("jobs", "workers")


def upgrade() -> None:
    for table in TABLES:
        # The default is for the rows there are, and for processes of the version before.
        one = sa.Column("devices", sa.Integer(), nullable=False, server_default="1")
        op.add_column(table, one)


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "devices")
