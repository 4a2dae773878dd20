"""The small world that every test of the store begins with."""

import pytest

from store.session import Database
from tests.store.world import World

pytest.register_assert_rewrite("tests.store.job_machine")


@pytest.fixture
def world(database: Database) -> World:
    return World(database)
