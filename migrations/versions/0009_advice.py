"""Advice on bases: jobs of a fourth kind."""

from alembic import op

revision = "0009"
down_revision = "0008"

BEFORE = "kind IN ('train', 'evaluate', 'predict')"
AFTER = "kind IN ('train', 'evaluate', 'predict', 'advise')"


def upgrade() -> None:
    replace(BEFORE, AFTER)


def downgrade() -> None:
    """A version that does not know advice has no place for it."""
    op.execute("DELETE FROM jobs WHERE kind = 'advise'")
    replace(AFTER, BEFORE)


def replace(before: str, after: str) -> None:
    """Have the kind of a job satisfy another condition."""
    if op.get_bind().dialect.name == "sqlite":
        rewrite(before, after)
        return
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", after)


def rewrite(before: str, after: str) -> None:
    """As section 8 of sqlite.org/lang_altertable.html changes constraints.

    A copy of the table would not do: the old one, when it is dropped, takes with it all rows that refer to it.
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'jobs'",
        (before, after),
    )
    assert changed.rowcount == 1
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
