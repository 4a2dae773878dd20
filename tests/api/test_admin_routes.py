"""Administration over HTTP: keys, projects, workers, queues, storage, numbers for Prometheus."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from fastapi.testclient import TestClient

from store import blobs, workers
from tests.api.service import Service, Worker, errors_of

FACTS: dict[str, Any] = {
    "host": "machine",
    "pid": 1,
    "device": "cpu",
    "device_name": "a processor",
    "memory_bytes": 2**30,
    "slots": 1,
    "status": "idle",
}


def test_a_keys_text_is_shown_once(service: Service, admin: TestClient) -> None:
    answer = admin.post("/v1/keys", json={"name": "notebook", "scopes": ["train", "train"]})
    made = answer.json()
    assert answer.status_code == 201
    assert service.client(made["key"]).get("/v1/jobs").status_code == 200
    listed = {row["id"]: row for row in admin.get("/v1/keys", params={"limit": 100}).json()["data"]}
    shown = listed[made["id"]]
    assert shown["scopes"] == ["train"]
    assert shown["last_used_at"]
    assert made["key"] not in str(listed)
    assert made["key"].startswith(shown["prefix"])


def test_a_revoked_key_stays_listed(admin: TestClient) -> None:
    project = admin.post("/v1/projects", json={"name": uuid4().hex}).json()["id"]
    body = {"name": "gone", "scopes": ["predict"], "project": project}
    made = admin.post("/v1/keys", json=body).json()
    for _ in range(2):
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
    (shown,) = admin.get("/v1/keys", params={"project": project}).json()["data"]
    assert shown["revoked_at"]
    errors_of(admin.delete("/v1/keys/key_nothing"), 404)


def test_a_bad_key_request_names_the_field(admin: TestClient) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    for change, loc in [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"name": ""}, "name"),
        ({"expires_at": past}, "expires_at"),
        ({"expires_at": "2026-01-01T00:00:00"}, "expires_at"),
        ({"owner": "me"}, "owner"),
    ]:
        answer = admin.post("/v1/keys", json={"name": "x", "scopes": ["train"], **change})
        assert errors_of(answer)[0]["loc"][0] == loc
    body = {"name": "x", "scopes": ["train"], "project": "prj_nothing"}
    errors_of(admin.post("/v1/keys", json=body), 404)


def test_a_project_of_the_same_name_is_the_same(admin: TestClient) -> None:
    name = uuid4().hex
    first, again = (admin.post("/v1/projects", json={"name": name}).json() for _ in range(2))
    assert first == again
    assert first in admin.get("/v1/projects").json()["data"]


def test_queues_and_workers_are_shown(service: Service, admin: TestClient, worker: Worker) -> None:
    key = service.key("train", project="default")
    client = service.client(key)
    files = {"file": ("rows.csv", "a,label\n" + "1,x\n2,y\n" * 10)}
    data = {"task": "tabular-classification"}
    dataset = client.post("/v1/datasets", data=data, files=files).json()["id"]
    job = client.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    with service.database.transaction() as session:
        workers.beat(session, "wrk", **FACTS, queues=["cpu"])
    try:
        (shown,) = admin.get("/v1/workers").json()["data"]
        assert (shown["id"], shown["alive"], shown["queues"]) == ("wrk", True, ["cpu"])
        found = admin.get("/v1/queue").json()
        (queue,) = (queue for queue in found["queues"] if queue["name"] == "cpu")
        assert queue["queued"] >= 1
        assert (queue["workers"], queue["free_slots"]) == (1, 1)
        assert any(row["job"] == job and row["reason"] for row in found["waiting"])
    finally:
        with service.database.transaction() as session:
            workers.gone(session, "wrk")


def test_a_clean_up_frees_what_nothing_refers_to(
    service: Service, admin: TestClient, dataset: str
) -> None:
    blob = blobs.put_bytes(service.database, uuid4().bytes * 1000)
    kept = admin.get("/v1/storage").json()
    assert kept["orphan_bytes"] >= 16_000
    assert kept["dataset_bytes"] > 0
    assert admin.post("/v1/storage/clean-up").json() == {"freed_bytes": 0}  # it may be in use yet
    with service.database.transaction() as session:
        from store.tables import Blob

        session.get_one(Blob, blob).touched_at = datetime.now(UTC) - timedelta(hours=2)
    assert admin.post("/v1/storage/clean-up").json()["freed_bytes"] == 16_000
    assert admin.get("/v1/storage").json()["orphan_bytes"] == kept["orphan_bytes"] - 16_000


def test_prometheus_gets_numbers(admin: TestClient, job: str) -> None:
    answer = admin.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'modelyard_jobs{kind="train",status="queued"}' in answer.text
    assert 'modelyard_queue_jobs{queue="cpu"}' in answer.text
    assert 'route="/v1/jobs",status="202"' in answer.text
    assert job not in answer.text


def test_the_service_says_how_it_is(service: Service) -> None:
    stranger = service.client(None)
    assert stranger.get("/healthz").json() == {"status": "ok"}
    assert stranger.get("/readyz").json() == {"status": "ready"}
