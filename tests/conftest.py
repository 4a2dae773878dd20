"""Fixtures for every test: real servers, and fresh migrated databases on both engines."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import torch
from sqlalchemy import make_url

from store import migrate
from store.session import Database, connect
from tests import servers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, help="of the tests that draw; printed, so that it can be given"
    )
    parser.addoption("--kills", type=int, default=2, help="of each training in test_kills.py")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(2**31)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Threads of processes that share cores wait for each other.
        torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Quiet runs show no header."""
    terminalreporter.write_line(f"seed: {config.option.seed}")


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """What everything that is drawn at random depends on."""
    found: int = pytestconfig.option.seed
    return found


@pytest.fixture(scope="session")
def kills(pytestconfig: pytest.Config) -> int:
    """How often each training is killed."""
    found: int = pytestconfig.option.kills
    return found


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    """The database at `url`, closed at the end."""
    database = connect(url)
    try:
        yield database
    finally:
        database.dispose()


@contextlib.contextmanager
def fresh_postgres(server_url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database of the server, dropped at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that a server under another user can enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="modelyard-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """A real PostgreSQL server: the URL of its maintenance database."""
    with servers.postgres(server_folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_url(server_folder: Path) -> Iterator[str]:
    """A real Redis (or Valkey) server."""
    with servers.redis_server(server_folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.sqlite"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def _postgres_template(postgres_url: str) -> Iterator[str]:
    with fresh_postgres(postgres_url) as url:
        migrate.upgrade(url)
        yield make_url(url).database or ""


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database."""
    path = shutil.copy(_sqlite_template, tmp_path / "store.sqlite")
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(postgres_url: str, _postgres_template: str) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    with fresh_postgres(postgres_url, _postgres_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database, of each kind in turn."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_database_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with opened(database_url) as database:
        yield database


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    with opened(sqlite_url) as database:
        yield database


@pytest.fixture
def postgres_database(postgres_database_url: str) -> Iterator[Database]:
    with opened(postgres_database_url) as database:
        yield database
