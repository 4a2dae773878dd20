"""Connections and transactions, and the one clock: the database's."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from types import ModuleType
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    event,
    literal_column,
    make_url,
    select,
)
from sqlalchemy.orm import Session, sessionmaker

from store.columns import Moment

_SQLITE_WAIT_SECONDS = 15
_POSTGRES_SESSION = {
    # Our statements read few rows: a second process takes longer to start (4 ms for a curve).
    "max_parallel_workers_per_gather": "0",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
_POSTGRES_SOCKET = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_CLOCKS = {
    "postgresql": "clock_timestamp()",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
}


class Database:
    """A pool of connections to one database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._write = sessionmaker(engine, expire_on_commit=False)
        reader = engine.execution_options(read_only=True, **_read_only(self.dialect))
        self._read = sessionmaker(reader, expire_on_commit=False)

    @contextlib.contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error. Rows stay usable after it."""
        make = self._read if read_only else self._write
        with make.begin() as session:
            yield session

    def dispose(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()


def connect(url: str) -> Database:
    """The database at `url`, such as sqlite:////path/db.sqlite or postgresql://user@host/name."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        return Database(_sqlite_engine(address))
    return Database(_postgres_engine(address))


def clock(session: Session) -> ColumnElement[datetime]:
    """The database's clock, to compare with inside a statement."""
    return literal_column(_CLOCKS[session.get_bind().dialect.name], Moment())


def now(session: Session) -> datetime:
    """The time by the database's clock, the only one that leases and waits are compared with."""
    # A row half changed is not to be written because the time is asked for.
    with session.no_autoflush:
        return session.execute(select(clock(session))).scalar_one()


def _read_only(dialect: str) -> dict[str, Any]:
    return {"postgresql_readonly": True} if dialect == "postgresql" else {}


def _postgres_engine(url: URL) -> Engine:
    settings = " ".join(f"-c {name}={value}" for name, value in _POSTGRES_SESSION.items())
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        connect_args={"options": settings, **_POSTGRES_SOCKET},
    )


def _sqlite_engine(url: URL) -> Engine:
    module = sqlite_module()
    engine = create_engine(
        url,
        module=module,
        connect_args={"timeout": _SQLITE_WAIT_SECONDS, "check_same_thread": False},
    )
    journal = "WAL" if keeps_wal_whole(module.sqlite_version_info) else "DELETE"

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        # The driver's own BEGIN comes too late and too weak; `_begin` says it instead.
        connection.isolation_level = None
        for setting in (
            f"busy_timeout={_SQLITE_WAIT_SECONDS * 1000}",
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
            "journal_size_limit=67108864",
        ):
            connection.execute(f"PRAGMA {setting}")
        _set_journal(connection, journal, module.OperationalError)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later is refused at once when another one wrote
        # in between, whatever the time-out; taking the write lock at the start waits instead.
        reads = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _set_journal(connection: Any, journal: str, locked: type[Exception]) -> None:
    """Choose the journal. While others choose it for a new database, SQLite refuses without waiting."""
    deadline = time.monotonic() + _SQLITE_WAIT_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode={journal}")
        except locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def sqlite_module() -> ModuleType:
    """The newest SQLite driver here; the standard one unless it has the WAL-reset bug and another has not."""
    if keeps_wal_whole(sqlite3.sqlite_version_info):
        return sqlite3
    try:
        import pysqlite3
    except ImportError:
        return sqlite3
    fixed: ModuleType = pysqlite3
    return fixed if keeps_wal_whole(fixed.sqlite_version_info) else sqlite3


def keeps_wal_whole(version: tuple[int, ...]) -> bool:
    """Whether this SQLite has no WAL-reset bug, which can corrupt a database (sqlite.org/wal.html)."""
    return (
        version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    )
