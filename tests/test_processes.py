"""API processes that share a port, and those that only predict."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from cli.client import ready
from cli.processes import free_port
from store import migrate
from store.settings import StoreSettings
from tests.processes import ROOT, Part

KEY = "an admin key for tests"


def started(folder: Path, **settings: str) -> tuple[Part, str]:
    """An API on a database of its own, and its URL."""
    port = free_port()
    url = f"sqlite:///{folder / 'test.sqlite'}"
    migrate.upgrade(StoreSettings(database_url=url).database)
    environment = {
        "MODELYARD_DATABASE_URL": url,
        "MODELYARD_DATA_DIR": str(folder / "data"),
        "MODELYARD_ADMIN_KEY": KEY,
        **{f"MODELYARD_{name.upper()}": value for name, value in settings.items()},
    }
    part = Part("api", ["api", "--port", str(port)], folder, ROOT, environment)
    address = f"http://127.0.0.1:{port}"
    assert ready(address, lambda: part.alive), part.log.read_text()
    return part, address


def listening(part: Part) -> set[int]:
    """The ids of the processes that listen."""
    found = set()
    for child in psutil.Process(part.pid).children():
        with suppress(psutil.NoSuchProcess):
            if any(c.status == psutil.CONN_LISTEN for c in child.net_connections("inet")):
                found.add(child.pid)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_processes_share_a_port_and_their_counts_and_one_that_dies_is_replaced(
    tmp_path: Path,
) -> None:
    part, url = started(tmp_path, processes="2")
    try:
        wait_for(lambda: len(listening(part)) == 2)
        first = listening(part)
        for _ in range(20):  # each on a connection of its own, so that both get some
            assert httpx2.get(f"{url}/healthz").status_code == 200
        counted = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        total = sum(
            float(line.rsplit(" ", 1)[1])
            for line in counted.splitlines()
            if line.startswith("modelyard_http_request_seconds_count") and "/healthz" in line
        )
        assert total >= 20, counted
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(listening(part) - {killed}) == 2)
        assert httpx2.get(f"{url}/healthz").status_code == 200
    finally:
        status = part.end()
    assert status == 0
    assert not any(map(psutil.pid_exists, first))


@pytest.mark.slow
def test_a_predictor_offers_predictions_and_nothing_else(tmp_path: Path) -> None:
    part, url = started(tmp_path, role="predictor")
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert httpx2.get(f"{url}/v1/jobs", headers=headers).status_code == 404
        answer = httpx2.post(f"{url}/v1/models/none/predict", json={"inputs": [1]}, headers=headers)
        assert answer.status_code == 404
        assert "none" in answer.json()["detail"]
        assert httpx2.get(f"{url}/metrics", headers=headers).status_code == 200
        paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
        assert "/v2/models/{ref}/infer" in paths
        assert {path.rpartition("/")[2] for path in paths if path.startswith("/v1/")} == {
            "predict", "embed", "explain",
        }  # fmt: skip
    finally:
        assert part.end() == 0
