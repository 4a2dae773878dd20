"""Runs the migrations on the connection that `store.migrate` gives, or that `alembic` finds in the settings."""

from alembic import context
from sqlalchemy import Connection

from store.session import connect
from store.settings import StoreSettings
from store.tables import Row


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        # SQLite changes a column only by copying its table.
        user_module_prefix="columns.",
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_from_settings() -> None:
    database = connect(StoreSettings().database)
    try:
        with database.engine.begin() as connection:
            run(connection)
    finally:
        database.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    run_from_settings()
