"""Another list of the kinds that a job can be: a condition of the table, which SQLite cannot change."""

from alembic import op


def replace(before: str, after: str) -> None:
    """Have the kind of a job satisfy the condition `after` in the place of `before`."""
    if op.get_bind().dialect.name == "sqlite":
        _rewrite(before, after)
        return
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", after)


def _rewrite(before: str, after: str) -> None:
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
