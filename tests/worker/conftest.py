"""The small world that tests of the worker begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from store.session import Database
from tests.worker.ensemble import CASES, learn
from tests.worker.shop import Shop


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """A trainer in the test's own process sets torch up for itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.fixture
def shop(database: Database, database_url: str, tmp_path: Path) -> Shop:
    """On each kind of database in turn."""
    return Shop(database, database_url, tmp_path)


@pytest.fixture
def small_shop(sqlite_database: Database, sqlite_url: str, tmp_path: Path) -> Shop:
    """On SQLite alone, for what does not depend on the database."""
    return Shop(sqlite_database, sqlite_url, tmp_path)


@pytest.fixture(scope="session")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process has learned every case."""
    folder = tmp_path_factory.mktemp("lone")
    torch.set_num_threads(1)
    for case in CASES:
        learn(case, folder)
    return folder
