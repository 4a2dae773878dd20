"""What is asked of a base and of a teacher is refused before a job is queued, where it cannot be had."""

import json
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from store import blobs
from store.tables import Checkpoint
from tests.api.service import ROWS, TASK, Worker, errors_of

NEURAL = {"name": "mlp", "layers": 1, "width": 8}


def upload(client: TestClient, rows: str = ROWS) -> str:
    files = {"file": ("rows.csv", rows.encode(), "text/csv")}
    made = client.post("/v1/datasets", data={"task": TASK, "name": uuid4().hex}, files=files)
    assert made.status_code < 300, made.text
    found: str = made.json()["id"]
    return found


def trained(client: TestClient, worker: Worker, dataset: str, labels: list[str]) -> str:
    """A checkpoint whose codec knows these labels."""
    task = {"name": TASK, "architecture": NEURAL}
    job = client.post("/v1/jobs", json={"dataset": dataset, "task": task}).json()["id"]
    found = worker.succeed(job)
    blob = blobs.put_bytes(worker.database, json.dumps({"labels": labels}).encode())
    with worker.database.transaction() as session:
        change = update(Checkpoint).where(Checkpoint.id == found.id).values(codec_blob=blob)
        session.execute(change)
    return found.id


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "kept": ({"head": "kept"}, ["transfer", "head"]),
    "kept with replay": ({"head": "kept", "replay": 0.5}, ["transfer", "head"]),
    "taught for nothing": ({"head": "new", "distillation": {}}, ["transfer", "head"]),
    "foreign teacher": (
        {"head": "new", "distillation": {"teacher": "TEACHER"}},
        ["transfer", "distillation", "teacher"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_the_labels_is_refused(
    client: TestClient, worker: Worker, name: str
) -> None:
    dataset = upload(client)
    base = trained(client, worker, dataset, ["even", "round"])
    transfer, loc = BAD[name]
    asked = json.loads(json.dumps(transfer).replace("TEACHER", base))
    body = {"dataset": dataset, "base": base, "transfer": asked}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert error["loc"] == loc


def test_a_head_may_grow_and_a_teacher_is_pinned(client: TestClient, worker: Worker) -> None:
    dataset = upload(client)
    base = trained(client, worker, dataset, ["even"])
    job = client.get("/v1/jobs").json()["data"][0]["id"]
    lessons = {"teacher": job}
    transfer = {"head": "grown", "replay": 0.3, "distillation": lessons}
    body = {"dataset": dataset, "base": base, "transfer": transfer}
    made = client.post("/v1/jobs", json=body)
    assert made.status_code == 202, made.text
    assert made.json()["resolved"]["transfer"]["distillation"]["teacher"] == base
    assert made.json()["request"]["transfer"]["distillation"] == lessons


@pytest.mark.parametrize(
    ("asked", "loc"),
    [
        ({"transfer": {"linear_probe": True, "layer_decay": 0.5}}, ["transfer", "layer_decay"]),
        ({"transfer": {"adapters": {"name": "lora"}, "l2_sp": 0.1}}, ["transfer", "l2_sp"]),
        (
            {
                "transfer": {"adapters": {"name": "lora"}},
                "resources": {"devices": 2, "sharded": True},
            },
            ["resources", "sharded"],
        ),
        ({"transfer": {"adapters": {"name": "lora", "where": []}}}, ["transfer", "adapters"]),
    ],
)
def test_ways_of_fine_tuning_that_do_not_go_together_are_refused(
    client: TestClient, worker: Worker, asked: dict[str, Any], loc: list[str]
) -> None:
    dataset = upload(client)
    base = trained(client, worker, dataset, ["even", "odd"])
    errors = errors_of(client.post("/v1/jobs", json={"dataset": dataset, "base": base, **asked}))
    assert errors[0]["loc"][: len(loc)] == loc


def test_a_replay_of_data_that_was_deleted_is_refused(client: TestClient, worker: Worker) -> None:
    old = upload(client)
    base = trained(client, worker, old, ["even", "odd"])
    assert client.delete(f"/v1/datasets/{old}").status_code < 300
    body = {"dataset": upload(client), "base": base, "transfer": {"replay": 0.5}}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert error["loc"] == ["transfer", "replay"]
    assert "was deleted" in error["msg"]


def test_a_teacher_needs_no_base_but_nothing_else_does_without(
    client: TestClient, worker: Worker
) -> None:
    dataset = upload(client)
    teacher = trained(client, worker, dataset, ["even", "odd"])
    lessons = {"distillation": {"teacher": teacher}}
    task = {"name": TASK, "architecture": NEURAL}
    made = client.post("/v1/jobs", json={"dataset": dataset, "task": task, "transfer": lessons})
    assert made.status_code == 202, made.text
    assert made.json()["resolved"]["transfer"]["backbone_learning_rate"] == 1.0
    for transfer in ({"distillation": {}}, {**lessons, "replay": 0.5}, {**lessons, "head": "kept"}):
        body = {"dataset": dataset, "transfer": transfer}
        assert errors_of(client.post("/v1/jobs", json=body))[0]["loc"][0] == "transfer"
    forest = {"name": TASK, "architecture": {"name": "random-forest"}}
    body = {"dataset": dataset, "task": forest, "transfer": lessons}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert "follows no gradient" in error["msg"]
