"""Fixtures for tests of the web side: one running application, and somebody new in each test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from tests.api.service import ADMIN_KEY, BODY_BYTES, ROWS, TASK, UPLOAD_BYTES, Service, Worker
from tests.toys import toy


@pytest.fixture(scope="session")
def service(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(_sqlite_template, folder / "modelyard.sqlite")
    settings = ApiSettings(
        data_dir=folder,
        admin_key=ADMIN_KEY,
        upload_bytes=UPLOAD_BYTES,
        body_bytes=BODY_BYTES,
        check_seconds=60,
        key_cache_seconds=0,
    )
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as start:
        yield Service(app, folder, start)


@pytest.fixture
def client(service: Service) -> TestClient:
    """Somebody with a project of their own."""
    return service.client(service.key("train"))


@pytest.fixture
def admin(service: Service) -> TestClient:
    return service.client(ADMIN_KEY)


@pytest.fixture
def upload(client: TestClient) -> Callable[..., Any]:
    """Uploads a file, by default a good one, and gives the answer."""

    def send(
        content: str | bytes = ROWS, task: str = TASK, file: str = "rows.csv", **form: Any
    ) -> Any:
        return client.post(
            "/v1/datasets", data={"task": task, **form}, files={"file": (file, content)}
        )

    return send


@pytest.fixture
def dataset(upload: Callable[..., Any]) -> str:
    """The id of a data set that can be trained on."""
    answer = upload()
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


@pytest.fixture
def job(client: TestClient, dataset: str) -> str:
    """The id of a queued job."""
    answer = client.post("/v1/jobs", json={"dataset": dataset, "training": {"epochs": 3}})
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["id"]
    return found


@pytest.fixture
def worker(service: Service) -> Worker:
    return Worker(service.database)


@pytest.fixture
def images(client: TestClient, tmp_path: Path) -> str:
    """A data set of images."""
    found = toy("image-classification", tmp_path)["file"]
    with found.path.open("rb") as file:
        answer = client.post(
            "/v1/datasets",
            data={"task": "image-classification"},
            files={"file": (found.name, file)},
        )
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made
