"""Requests made up from the OpenAPI document: never a 5xx, never an answer that is not documented."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.specs.openapi import checks

from api.app import create_app
from api.settings import ApiSettings
from tests.api.service import ADMIN_KEY, ROWS, TASK

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHECKS: list[Any] = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, since these requests change what they like."""
    folder = tmp_path_factory.mktemp("schemathesis")
    (folder / "modelyard.sqlite").write_bytes(_sqlite_template.read_bytes())
    settings = ApiSettings(data_dir=folder, admin_key=ADMIN_KEY, body_bytes=100_000)
    config = uvicorn.Config(create_app(settings), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def ids(url: str) -> dict[str, str]:
    """What is there, by the names of the path's parameters."""
    with httpx2.Client(base_url=url, headers=KEY, timeout=60) as client:
        files = {"file": ("rows.csv", ROWS)}
        dataset = client.post("/v1/datasets", data={"task": TASK}, files=files).json()["id"]
        job = client.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
        epochs = {"training.epochs": {"type": "int", "low": 1, "high": 2}}
        asked = {"dataset": dataset, "space": epochs}
        sweep = client.post("/v1/sweeps", json=asked).json()["id"]
    return {"dataset_id": dataset, "job_id": job, "ref": job, "sweep_id": sweep}


OPERATIONS = [
    found.ok()
    for found in schemathesis.openapi.from_dict(
        create_app(ApiSettings()).openapi()
    ).get_all_operations()
]


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in OPERATIONS
        for mode in schemathesis.GenerationMode
        # Where nothing is asked for, nothing can be wrong.
        if mode.is_positive or "health" not in operation.tags
    ],
)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(data=strategies.data())
def test_no_request_breaks_the_service(
    url: str, ids: dict[str, str], operation: Any, mode: Any, data: strategies.DataObject
) -> None:
    case = data.draw(operation.as_strategy(generation_mode=mode))
    for name, value in ids.items():
        if name in (case.path_parameters or {}) and case.method != "DELETE":
            case.path_parameters[name] = value
    # Of a time that is too short to answer in, 504 is right.
    if case.headers and _is_time(case.headers.get("X-Request-Timeout", "")):
        case.headers["X-Request-Timeout"] = "60"
    case.call_and_validate(base_url=url, headers=KEY, checks=CHECKS)


def _is_time(text: object) -> bool:
    try:
        return 0 < float(str(text)) < 60
    except ValueError:
        return False
