"""Who may do what: every route, by inventory."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Mount

from api import auth
from tests.api.service import CHECKPOINT, ROWS, TASK, Service, Worker, errors_of

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PREDICT = {
    "list_tasks",
    "get_task",
    "list_architectures",
    "list_models",
    "get_model",
    "predict",
    "embed",
    "explain",
    "predict_as_hugging_face",
    "extract_features",
    "compare_texts",
    "complete_as_openai",
    "embed_as_openai",
    "list_openai_models",
    "get_hugging_face_health",
    "get_hugging_face_info",
    "get_server",
    "infer",
    "infer_with_version",
    "get_model_metadata",
    "get_model_version_metadata",
    "get_model_ready",
    "get_model_version_ready",
    "list_repository",
    "load_model",
}
ADMIN = {
    "list_workers",
    "get_queue",
    "create_key",
    "list_keys",
    "revoke_key",
    "create_project",
    "list_projects",
    "get_storage",
    "clean_up_storage",
    "rotate_webhook_secret",
    "get_prometheus_metrics",
}
OPEN = {"healthz", "readyz", "get_live", "get_ready"}
BODIES: dict[str, dict[str, Any]] = {
    "create_dataset": {"data": {"task": TASK}, "files": {"file": ("rows.csv", ROWS)}},
    "create_job": {"json": {"dataset": "{dataset}"}},
    "create_advice": {"json": {}},
    "create_sweep": {
        "json": {
            "dataset": "{dataset}",
            "space": {"training.epochs": {"type": "int", "low": 1, "high": 2}},
        }
    },
    "update_job": {"json": {"name": "taken over"}},
    "clone_job": {"json": {}},
    "extend_job": {"json": {"epochs": 1}},
    "create_key": {"json": {"name": "key", "scopes": ["predict"]}},
    "create_project": {"json": {"name": "project"}},
    "set_model_alias": {"json": {"version": 1}},
    "evaluate_model": {"json": {"dataset": "{dataset}", "split": "validation"}},
    "create_export": {"json": {"format": "safetensors"}},
    "batch_predict": {"data": {"dataset": "{dataset}"}},
    "predict": {"json": {"inputs": [{"a": 1, "b": 2}]}},
    "predict_as_hugging_face": {"json": {"table": {"a": [1], "b": [2]}}},
    "explain": {"json": {"inputs": [{"a": 1, "b": 2}]}},
    "embed": {"json": {"inputs": [{"a": 1, "b": 2}]}},
    "extract_features": {"json": {"inputs": "a"}},
    "compare_texts": {"json": {"inputs": {"source_sentence": "a", "sentences": ["b"]}}},
}


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every documented operation."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def all_paths(routes: Any) -> Iterator[str]:
    """Every path, those included that the document does not show."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from all_paths(route.original_router.routes)
        elif isinstance(route, Mount):
            yield f"{route.path}/some-file"
        else:
            yield route.path


def test_every_route_needs_a_key(service: Service) -> None:
    stranger, answered = service.client(None), set()
    for path in {*all_paths(service.app.routes), "/nothing", "/v1", "/static", "/v1/jobs/"}:
        for method in METHODS:
            answer = stranger.request(method, path.replace("{", "").replace("}", ""))
            if answer.status_code != 401:
                answered.add(path)
            else:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answered == {
        "/",
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/docs",
        "/openapi.json",
        "/docs/files/some-file",
    }


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer wrong", "bearer\twrong", "wrong"]
)
def test_a_wrong_header_is_refused(service: Service, header: str) -> None:
    answer = service.client(None).get("/v1/jobs", headers={"Authorization": header})
    errors_of(answer, 401)


def test_a_truncated_expired_or_revoked_key_opens_nothing(service: Service) -> None:
    key = service.key("train")
    errors_of(service.client(key[:-1]).get("/v1/jobs"), 401)
    old = service.key("train", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    answer = service.client(old).get("/v1/jobs")
    errors_of(answer, 401)
    assert "expired" in answer.json()["detail"]


def test_a_key_is_refused_before_its_body_is_read(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1000
            raise AssertionError("the body was read")

    answer = service.client(None).post("/v1/datasets", content=endless())
    errors_of(answer, 401)


def test_every_route_asks_for_its_scope(service: Service) -> None:
    clients = {scope: service.client(service.key(scope)) for scope in auth.SCOPES}
    for method, path, operation in operations(service.app):
        name = operation["operationId"]
        if name in OPEN or name == "clean_up_storage":
            continue
        allowed = {"admin"}
        if name not in ADMIN:
            allowed |= {"train"}
        if name in PREDICT:
            allowed |= {"predict"}
        for scope, client in clients.items():
            url = re.sub(r"\{.*?\}", "nothing", path)
            body = {} if name == "create_dataset" else BODIES.get(name, {})
            status = client.request(method, url, **body).status_code
            assert (status != 403) == (scope in allowed), (scope, method, path, status)


def test_another_projects_things_are_not_there(
    service: Service, client: TestClient, dataset: str, job: str, worker: Worker
) -> None:
    asked = {"dataset": dataset, "name": "mine", "webhook": "https://localhost:1/"}
    trained = client.post("/v1/jobs", json=asked).json()["id"]
    checkpoint = worker.succeed(trained)
    alias = {"version": 1}
    assert client.put("/v1/models/mine/aliases/prod", json=alias).status_code == 200
    (told,) = client.get("/v1/webhooks/deliveries", params={"limit": 1}).json()["data"]
    sweep = client.post("/v1/sweeps", **_with(BODIES["create_sweep"], dataset)).json()["id"]
    mine = {
        "sweep_id": [sweep],
        "pretrained_id": [client.post("/v1/pretrained", files={"file": CHECKPOINT}).json()["id"]],
        "delivery_id": [told["id"]],
        "dataset_id": [dataset],
        "job_id": [job, trained],
        "checkpoint_id": [checkpoint.id],
        "name": ["mine"],
        "alias": ["prod"],
        "version": ["1"],
        "ref": ["mine", "mine@1", "mine@prod", trained, checkpoint.id],
    }
    before = _everything(client, mine)
    stranger = service.client(service.key("train"))
    tried = set()
    for method, path, operation in operations(service.app):
        name = operation["operationId"]
        creates = name in ("create_job", "create_sweep")
        if name in ADMIN or name == "get_task" or not (creates or "{" in path):
            continue
        body = _with(BODIES.get(name, {}), dataset)
        for url in _filled(path, mine):
            errors_of(stranger.request(method, url, **body), 404)
            tried.add(name)
    assert len(tried) > 20
    lists = "datasets", "jobs", "sweeps", "models", "pretrained", "webhooks/deliveries"
    for listed in (f"/v1/{name}" for name in lists):
        assert stranger.get(listed).json()["data"] == []
    for base in mine["ref"]:
        own = stranger.post("/v1/datasets", **BODIES["create_dataset"]).json()["id"]
        errors_of(stranger.post("/v1/jobs", json={"dataset": own, "base": base}), 404)
    assert _everything(client, mine) == before


def _with(body: dict[str, Any], dataset: str) -> dict[str, Any]:
    filled: dict[str, Any] = json.loads(json.dumps(body).replace("{dataset}", dataset))
    return filled


def _filled(path: str, values: dict[str, list[str]]) -> list[str]:
    """The path with every value of its parameters."""
    filled = [path]
    for name in re.findall(r"\{(.*?)\}", path):
        filled = [each.replace(f"{{{name}}}", value) for each in filled for value in values[name]]
    return filled


def _everything(client: TestClient, mine: dict[str, list[str]]) -> list[Any]:
    paths = [f"/v1/jobs/{job}" for job in mine["job_id"]] + ["/v1/datasets", "/v1/models"]
    paths += [f"/v1/sweeps/{sweep}" for sweep in mine["sweep_id"]]
    return [client.get(path).json() for path in paths]


def test_a_revoked_key_is_forgotten_at_once(service: Service, admin: TestClient) -> None:
    made = admin.post("/v1/keys", json={"name": "short", "scopes": ["train"]}).json()
    keys = service.app.state.keys
    keys.look_ups.seconds = 60
    try:
        client = service.client(made["key"])
        assert client.get("/v1/jobs").status_code == 200
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
        errors_of(client.get("/v1/jobs"), 401)
    finally:
        keys.look_ups.seconds = 0


def test_a_remembered_key_needs_no_database(service: Service) -> None:
    keys, client = service.app.state.keys, service.client(service.key("predict"))
    keys.look_ups.seconds = 60
    found, looked = keys.look_ups._look_up, []
    keys.look_ups._look_up = lambda key: looked.append(key) or found(key)
    try:
        for _ in range(3):
            assert client.get("/v1/tasks").status_code == 200
    finally:
        keys.look_ups._look_up = found
        keys.look_ups.seconds = 0
    assert len(looked) == 1
