"""Models out of the service and in again over HTTP."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import pytest
from fastapi.testclient import TestClient

from store import jobs
from store.session import Database
from tasks.parts.packages import WEIGHTS, pack
from tests.api.service import errors_of
from tests.api.serving_world import TASK, World, client, row, train
from tests.packed import files_of, packed


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def api(world: World, tmp_path: Path) -> Iterator[TestClient]:
    with client(world, tmp_path) as opened:
        yield opened


def send(api: TestClient, content: bytes, **more: Any) -> Any:
    return api.post("/v1/models", files={"file": ("model.zip", content)}, **more)


def exported(folder: Path) -> bytes:
    example = train()
    return packed(example.spec, example.trained, folder).read_bytes()


def test_an_export_is_a_job_that_says_what_it_makes(world: World, api: TestClient) -> None:
    checkpoint = world.publish()
    answer = api.post("/v1/models/rows/exports", json={"format": "safetensors", "priority": 3})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["priority"]) == ("export", "queued", 3)
    assert job["request"] == {"model": "rows@1", "format": "safetensors"}
    assert (job["base"], job["base_checkpoint"]) == ("rows@1", checkpoint.id)
    errors_of(api.post(f"/v1/jobs/{job['id']}/clone", json={}), 409)
    with world.database.transaction() as session:
        taken = jobs.claim(session, uuid4().hex, ["cpu"], 30, "worker")
        assert taken is not None
        error = {"code": "internal", "message": "It failed."}
        jobs.finish(session, taken.id, taken.lease_epoch, "failed", error=error)
    again = api.post(f"/v1/jobs/{job['id']}/retry").json()
    assert (again["kind"], again["request"], again["parent"]) == (
        "export",
        job["request"],
        job["id"],
    )


def test_a_format_that_is_not_there_is_refused_with_those_that_are(
    world: World, api: TestClient
) -> None:
    world.publish()
    (error,) = errors_of(api.post("/v1/models/rows/exports", json={"format": "pickle"}))
    assert error["loc"] == ["format"]
    assert "safetensors" in str(error["allowed"])
    errors_of(api.post("/v1/models/none/exports", json={"format": "safetensors"}), 404)


def test_a_model_that_comes_in_predicts_like_the_one_that_left(
    world: World, api: TestClient, tmp_path: Path
) -> None:
    world.publish()
    answer = send(api, exported(tmp_path), data={"name": "guest"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["ref"], made["version"], made["job"]) == ("guest@1", 1, None)
    assert answer.headers["Location"] == "/v1/models/guest@1"
    shown = api.get("/v1/models/guest").json()
    assert (shown["task"], shown["architecture"]["name"]) == (TASK, "mlp")
    assert shown["metrics"] == {"validation": {"accuracy": 0.5}}
    body = {"inputs": [row(n) for n in range(20)]}
    first, second = (
        api.post(f"/v1/models/{name}/predict", json=body).json() for name in ("rows", "guest")
    )
    assert first["predictions"] == second["predictions"]
    assert api.get("/v1/models").json()["data"][0]["metrics"] == shown["metrics"]


def test_without_a_name_it_is_a_version_of_the_model_that_it_was(
    world: World, api: TestClient, tmp_path: Path
) -> None:
    content = exported(tmp_path)
    assert send(api, content).json()["ref"] == "rows@1"
    assert send(api, content).json()["ref"] == "rows@2"


def test_a_model_that_came_in_can_be_exported_evaluated_and_deleted(
    world: World, api: TestClient, tmp_path: Path
) -> None:
    send(api, exported(tmp_path))
    assert api.post("/v1/models/rows/exports", json={"format": "safetensors"}).status_code == 202
    assert api.post("/v1/models/rows/evaluate", json={"dataset": world.dataset}).status_code == 202
    assert api.delete("/v1/models/rows").status_code == 204
    assert api.get("/v1/models/rows").status_code == 404


def test_an_import_repeated_with_its_key_makes_one_version(api: TestClient, tmp_path: Path) -> None:
    content, key = exported(tmp_path), {"Idempotency-Key": "the-same"}
    first, second = (send(api, content, headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("name", ["No", "a b", "job_1", "x" * 65])
def test_a_name_that_no_model_can_have_is_refused(
    name: str, api: TestClient, tmp_path: Path
) -> None:
    (error,) = errors_of(send(api, exported(tmp_path), data={"name": name}))
    assert error["loc"] == ["name"]


def test_what_is_no_export_is_refused_and_nothing_stays(api: TestClient, tmp_path: Path) -> None:
    (error,) = errors_of(send(api, b"no zip"))
    assert error["loc"][0] == "file"
    with ZipFile(content := BytesIO(), "w") as archive:
        archive.writestr("pickle.bin", b"\x80\x04")
    errors = errors_of(send(api, content.getvalue()))
    assert [error["loc"] for error in errors] == [
        ["file", "modelyard.json"],
        ["file", "codec.json"],
        ["file", WEIGHTS],
    ]
    assert api.get("/v1/models").json()["data"] == []


def test_a_network_too_large_for_a_check_is_refused(world: World, tmp_path: Path) -> None:
    example = train()
    wide = example.spec.task.architecture.model_copy(update={"width": 8192, "layers": 8})
    task = example.spec.task.model_copy(update={"architecture": wide})
    spec = example.spec.model_copy(update={"task": task})
    about = files_of(example.spec, example.trained, tmp_path)
    path = tmp_path / "large.zip"
    pack(about._replace(about=about.about.model_copy(update={"spec": spec})), path)
    with client(world, tmp_path, check_bytes=256 << 20) as api:
        (error,) = errors_of(send(api, path.read_bytes()))
    assert "more memory" in error["msg"]
