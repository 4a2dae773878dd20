"""Whatever happens in whatever order, and however the clock is set, jobs do as the model of `job_machine` says."""

import pytest

from tests.store.job_machine import live_through
from tests.store.world import Clock, World


def test_jobs_keep_their_promises_whatever_happens_in_whatever_order(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(world.database, monkeypatch)
    for part in range(3):
        live_through(world, clock, seed + part)
