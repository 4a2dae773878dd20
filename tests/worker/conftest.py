"""The small world that tests of the worker begin with."""

from pathlib import Path

import pytest

from store.session import Database
from tests.worker.shop import Shop


@pytest.fixture
def shop(database: Database, database_url: str, tmp_path: Path) -> Shop:
    """On each kind of database in turn."""
    return Shop(database, database_url, tmp_path)


@pytest.fixture
def small_shop(sqlite_database: Database, sqlite_url: str, tmp_path: Path) -> Shop:
    """On SQLite alone, for what does not depend on the database."""
    return Shop(sqlite_database, sqlite_url, tmp_path)
