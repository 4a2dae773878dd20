"""Starting the application: migrations, the first key, both databases, and what breaks later."""

import logging
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from api.app import NotMigrated, _ensure_admin, create_app
from api.queue import Bell
from api.settings import ApiSettings
from store import keys
from store.session import Database
from tests.api.service import ADMIN_KEY, ROWS, TASK, Service, errors_of


def settings_of(url: str, folder: Path, **more: Any) -> ApiSettings:
    return ApiSettings(database_url=url, data_dir=folder / "data", **more)


def test_the_first_key_is_made_shown_and_kept_once(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(sqlite_url, tmp_path)
    with TestClient(create_app(settings)):
        pass
    kept = settings.data_dir / "admin.key"
    key = kept.read_text().strip()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert key in capsys.readouterr().err
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/keys").status_code == 200
    assert capsys.readouterr().err == ""
    assert kept.read_text().strip() == key


def test_a_given_key_opens_and_is_shown_nowhere(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(sqlite_url, tmp_path, admin_key=ADMIN_KEY)
    for _ in range(2):
        with TestClient(create_app(settings)) as client:
            client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
            assert len(client.get("/v1/keys").json()["data"]) == 1
    assert ADMIN_KEY not in capsys.readouterr().err + repr(settings)
    assert not (settings.data_dir / "admin.key").exists()


@pytest.mark.parametrize("given", [ADMIN_KEY, None])
def test_processes_that_start_at_once_make_one_admin(
    database: Database, tmp_path: Path, given: str | None
) -> None:
    settings = ApiSettings(data_dir=tmp_path, admin_key=given)
    barrier = Barrier(6)

    def start() -> None:
        barrier.wait()
        _ensure_admin(database, settings)

    with ThreadPoolExecutor(6) as threads:
        for started in [threads.submit(start) for _ in range(6)]:
            started.result()
    with database.transaction(read_only=True) as session:
        assert keys.count(session) == 1


def test_an_old_database_refuses_to_start(tmp_path: Path) -> None:
    settings = settings_of(f"sqlite:///{tmp_path / 'empty.sqlite'}", tmp_path)
    with pytest.raises(NotMigrated, match="modelyard migrate"), TestClient(create_app(settings)):
        pass


def command(*options: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """`modelyard api` until it ends by itself."""
    environment = {f"MODELYARD_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "api", *options],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wrong_setting_refuses_to_start_and_says_which() -> None:
    ended = command(UPLOAD_BYTES="lots", CHECKS="0")
    assert ended.returncode == 2
    first, second = sorted(ended.stderr.splitlines())
    assert first.startswith("modelyard api: MODELYARD_CHECKS: ")
    assert second.startswith("modelyard api: MODELYARD_UPLOAD_BYTES: ")


def test_an_option_of_the_command_comes_before_the_environment(tmp_path: Path) -> None:
    wrong = {"PORT": "99999", "DATA_DIR": str(tmp_path)}
    assert "MODELYARD_PORT" in command(**wrong).stderr
    assert "modelyard migrate" in command("--port", "0", **wrong).stderr


def test_the_whole_way_works_on_both_databases(database_url: str, tmp_path: Path) -> None:
    settings = settings_of(database_url, tmp_path, admin_key=ADMIN_KEY)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    app = create_app(settings)
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        files = {"file": ("rows.csv", ROWS)}
        made = client.post("/v1/datasets", data={"task": TASK}, files=files).json()
        body, key = {"dataset": made["id"]}, {"Idempotency-Key": "once"}
        job = client.post("/v1/jobs", json=body, headers=key).json()
        assert client.post("/v1/jobs", json=body, headers=key).json() == job
        page = client.get(f"/v1/datasets/{made['id']}/examples", params={"limit": 1}).json()
        assert len(page["data"]) == 1
        for path in (
            "/v1/queue",
            "/v1/storage",
            "/metrics",
            "/v1/keys",
            f"/v1/jobs/{job['id']}/metrics",
        ):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/jobs/%00", "/v1/jobs?after=%00", "/v1/datasets?task=%00"):
            assert client.get(path).status_code in (200, 404, 422), path
        assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


def test_a_database_that_does_not_answer_is_503(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr(service.database, "transaction", broken)
    answer = service.client(None).get("/readyz")
    assert errors_of(answer, 503) == []
    assert answer.headers["Retry-After"] == "1"
    assert "secret" not in answer.text
    assert service.client(None).get("/healthz").status_code == 200


def test_a_key_that_cannot_be_looked_up_is_503(postgres_database_url: str, tmp_path: Path) -> None:
    settings = settings_of(
        postgres_database_url, tmp_path, admin_key=ADMIN_KEY, key_cache_seconds=0
    )
    headers, address = {"Authorization": f"Bearer {ADMIN_KEY}"}, make_url(postgres_database_url)
    server = address.set(database="postgres").render_as_string(hide_password=False)
    app = create_app(settings)
    with (
        TestClient(app, headers=headers, raise_server_exceptions=False) as client,
        psycopg.connect(server, autocommit=True) as connection,
    ):
        assert client.get("/v1/jobs").status_code == 200
        connection.execute(f"ALTER DATABASE {address.database} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [address.database],
        )
        answer = client.get("/v1/jobs")
        assert errors_of(answer, 503) == []
        assert answer.headers["Retry-After"] == "1"
        connection.execute(f"ALTER DATABASE {address.database} ALLOW_CONNECTIONS true")
        assert client.get("/v1/jobs").status_code == 200


@pytest.mark.parametrize("fault", [RuntimeError, PermissionError])
def test_a_fault_of_ours_tells_nothing_but_its_number(
    service: Service,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: type[Exception],
) -> None:
    def broken(*_: Any) -> None:
        raise fault("secret")

    monkeypatch.setattr("store.jobs.get", broken)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/v1/jobs/job_1", headers={"X-Request-Id": "mine-1"})
    assert errors_of(answer, 500) == []
    assert answer.json()["instance"] == "mine-1"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_answers_carry_safe_headers_and_the_requests_id(client: TestClient) -> None:
    answer = client.get("/v1/jobs", headers={"X-Request-Id": "abc.1"})
    assert answer.headers["X-Request-Id"] == "abc.1"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    odd = client.get("/v1/jobs", headers={"X-Request-Id": "a b\tc"})
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["X-Request-Id"])


def test_a_wrong_method_lists_the_right_ones(client: TestClient) -> None:
    answer = client.put("/v1/jobs/job_1")
    errors_of(answer, 405)
    assert answer.headers["Allow"] == "DELETE, GET, PATCH"


def test_the_docs_page_needs_nothing_from_elsewhere(service: Service) -> None:
    stranger = service.client(None)
    page = stranger.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"(?:src|href)=\"https?://", page.text)
    assert "script-src 'self' 'sha256-" in page.headers["Content-Security-Policy"]
    assert '"persistAuthorization": true' in page.text
    for file in re.findall(r"(?:src|href)=\"(docs/.*?)\"", page.text):
        assert stranger.get(f"/{file}").status_code == 200
    assert stranger.get("/", follow_redirects=False).headers["Location"] == "docs"


def test_docs_can_be_switched_off(sqlite_url: str, tmp_path: Path) -> None:
    settings = settings_of(sqlite_url, tmp_path, admin_key=ADMIN_KEY, docs=False)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with TestClient(create_app(settings), headers=headers) as client:
        assert client.get("/docs").status_code == 404
        assert client.get("/openapi.json").status_code == 404
        (error,) = errors_of(client.post("/v1/jobs", json={"dataset": "x", "nam": "y"}))
        assert "name" in error["allowed"]


# Wake-ups


def test_a_submitted_job_wakes_a_worker(redis_url: str, sqlite_url: str, tmp_path: Path) -> None:
    import redis

    settings = settings_of(sqlite_url, tmp_path, admin_key=ADMIN_KEY, broker_url=redis_url)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with (
        TestClient(create_app(settings), headers=headers) as client,
        redis.from_url(redis_url) as broker,
    ):
        files = {"file": ("rows.csv", ROWS)}
        made = client.post("/v1/datasets", data={"task": TASK}, files=files).json()
        client.post("/v1/jobs", json={"dataset": made["id"]})
        assert _eventually(lambda: broker.llen("cpu") == 1)
        message = broker.lindex("cpu", 0)
        assert b'"task": "wake"' in message
        assert made["id"].encode() not in message


def test_a_broker_that_is_away_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    bell = Bell(ApiSettings(broker_url="redis://127.0.0.1:1/0"))
    begun = time.monotonic()
    for _ in range(100):
        bell.ring("cpu")
    assert time.monotonic() - begun < 0.5
    with caplog.at_level(logging.WARNING):
        assert _eventually(lambda: "no wake-up" in caplog.text)
    bell.close()


def test_without_a_broker_the_bell_rings_on_this_machine(tmp_path: Path) -> None:
    settings = ApiSettings(data_dir=tmp_path)
    bell = Bell(settings)
    bell.ring("cpu")  # nobody has a bell there
    os.mkfifo(settings.doorbell)
    bell.ring("cpu")  # nobody listens
    pipe = os.open(settings.doorbell, os.O_RDONLY | os.O_NONBLOCK)
    bell.ring("cpu")
    assert len(os.read(pipe, 100)) == 1
    for _ in range(70_000):  # more than the pipe holds
        bell.ring("cpu")
    os.close(pipe)
    bell.close()


def _eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False
