"""The statements that the two databases spell differently."""

from typing import Any

from sqlalchemy import literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.tables import Row


def insert_new(session: Session, table: type[Row], values: dict[str, Any]) -> bool:
    """Insert a row unless one with its key is there; whether it was inserted."""
    insert: Any = postgresql.insert if dialect(session) == "postgresql" else sqlite.insert
    statement = insert(table).values(values).on_conflict_do_nothing()
    return session.execute(statement.returning(literal_column("1"))).first() is not None


def dialect(session: Session) -> str:
    """ "sqlite" or "postgresql"."""
    return session.get_bind().dialect.name
