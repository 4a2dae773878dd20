"""Metrics packed in blocks of up to a thousand points, instead of in a row for each step."""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
ROWS_AT_ONCE, BLOCK_POINTS = 1_000, 1_000
POINT = struct.Struct("<qid")

by_step = sa.table(
    "metrics",
    sa.column("job_id", sa.Text()),
    sa.column("step", sa.BigInteger()),
    sa.column("epoch", sa.Integer()),
    sa.column("at", sa.DateTime(timezone=True)),
    sa.column("values", JSON),
)
packed = sa.table(
    "metric_blocks",
    sa.column("job_id", sa.Text()),
    sa.column("name", sa.Text()),
    sa.column("first_step", sa.BigInteger()),
    sa.column("points", sa.LargeBinary()),
)


def upgrade() -> None:
    op.create_table(
        "metric_blocks",
        of_job(),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("first_step", sa.BigInteger(), primary_key=True),
        sa.Column("points", sa.LargeBinary(), nullable=False),
    )
    connection = op.get_bind()
    for block in blocks(connection):
        connection.execute(sa.insert(packed).values(block))
    op.drop_table("metrics")


def downgrade() -> None:
    """When a point was written is not known any more; it is said to be now."""
    op.create_table(
        "metrics",
        of_job(),
        sa.Column("step", sa.BigInteger(), primary_key=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("values", JSON, nullable=False),
    )
    connection = op.get_bind()
    for job_id in connection.scalars(sa.select(packed.c.job_id).distinct()).all():
        connection.execute(sa.insert(by_step), steps(connection, job_id))
    op.drop_table("metric_blocks")


def of_job() -> sa.Column[Any]:
    refers = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    return sa.Column("job_id", sa.Text(), refers, primary_key=True)


def blocks(connection: sa.Connection) -> Iterator[dict[str, Any]]:
    """The rows of all steps as rows of blocks."""
    of = by_step.c
    query = sa.select(of.job_id, of.step, of.epoch, of["values"]).order_by(of.job_id, of.step)
    found = connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
    for job_id, rows in groupby(found, key=lambda row: str(row.job_id)):
        points: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        for _, step, epoch, values in rows:
            for name, value in values.items():
                points[name].append((step, epoch, math.nan if value is None else value))
                if len(points[name]) == BLOCK_POINTS:
                    yield row_of(job_id, name, points.pop(name))
        yield from (row_of(job_id, name, left) for name, left in points.items())


def row_of(job_id: str, name: str, points: list[tuple[int, int, float]]) -> dict[str, Any]:
    data = b"".join(POINT.pack(*point) for point in points)
    return {"job_id": job_id, "name": name, "first_step": points[0][0], "points": data}


def steps(connection: sa.Connection, job_id: str) -> list[dict[str, Any]]:
    """The blocks of a job as a row for each step."""
    rows: dict[int, dict[str, Any]] = {}
    at = datetime.now(UTC)
    query = sa.select(packed.c.name, packed.c.points).where(packed.c.job_id == job_id)
    for name, data in connection.execute(query):
        for step, epoch, value in POINT.iter_unpack(data):
            row = {"job_id": job_id, "step": step, "epoch": epoch, "at": at, "values": {}}
            number = value if math.isfinite(value) else None
            rows.setdefault(step, row)["values"][name] = number
    return list(rows.values())
