"""Models over HTTP: what there is, what names mean, weights to take away, and evaluations."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load

from store import jobs
from store.session import Database
from tests.api.serving_world import TASK, World, client, row, train


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def api(world: World, tmp_path: Path) -> Iterator[TestClient]:
    with client(world, tmp_path) as opened:
        yield opened


def predict(api: TestClient, ref: str) -> Any:
    return api.post(f"/v1/models/{ref}/predict", json={"inputs": [row(1)]})


def test_a_list_shows_versions_aliases_task_and_metrics(world: World, api: TestClient) -> None:
    world.publish("first")
    world.publish("second")
    world.publish("second")
    api.put("/v1/models/second/aliases/live", json={"version": 1})
    page = api.get("/v1/models", params={"limit": 1}).json()
    [model] = page["data"]
    assert (model["name"], model["versions"], model["task"]) == ("second", 2, TASK)
    assert model["newest"]["ref"] == "second@2"
    assert model["aliases"] == {"live": 1}
    assert model["metrics"]["test"] == {"accuracy": 0.8}
    rest = api.get("/v1/models", params={"after": page["next"]}).json()
    assert [model["name"] for model in rest["data"]] == ["first"]
    assert not rest["has_more"]


def test_a_reference_shows_how_to_ask(world: World, api: TestClient) -> None:
    checkpoint = world.publish()
    model = api.get("/v1/models/rows").json()
    assert (model["ref"], model["name"], model["version"]) == ("rows@1", "rows", 1)
    assert (model["job"], model["checkpoint"]) == (checkpoint.job_id, checkpoint.id)
    assert (model["task"], model["architecture"]["name"]) == (TASK, "mlp")
    assert model["labels"] == ["high", "low"]
    assert [column["name"] for column in model["codec"]["columns"]] == ["a", "b", "kind"]
    assert model["codec"]["numbers"][0]["knots"].endswith(" values")
    assert "label" in model["prediction_schema"]["properties"]
    assert model["input_example"]
    assert model["metrics"]["test"] == {"accuracy": 0.8}
    alone = api.get(f"/v1/models/{checkpoint.id}").json()
    assert (alone["name"], alone["metrics"]) == (None, {"validation": {"accuracy": 0.9}})


def test_what_is_unknown_is_404(world: World, api: TestClient) -> None:
    for path in ("nothing", "nothing@1", "ckpt_nothing", "nothing/weights"):
        assert api.get(f"/v1/models/{path}").status_code == 404
    assert api.delete("/v1/models/nothing").status_code == 404


def test_an_alias_moves_what_a_name_means_at_once(world: World, api: TestClient) -> None:
    world.publish()
    world.publish(example=train(1))
    for version in (1, 2, 1):
        answer = api.put("/v1/models/rows/aliases/live", json={"version": version})
        assert answer.json() == {"alias": "live", "version": version, "ref": "rows@live"}
        assert predict(api, "rows@live").json()["model"] == f"rows@{version}"
    assert api.delete("/v1/models/rows/aliases/live").status_code == 204
    assert predict(api, "rows@live").status_code == 404


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        ("live", {"version": 3}, 404),
        ("live", {"version": 0}, 422),
        ("live", {"version": 1, "more": 1}, 422),
        ("live", {}, 422),
        ("7", {"version": 1}, 409),
        ("a b", {"version": 1}, 422),
    ],
)
def test_an_alias_that_cannot_be_is_refused(
    world: World, api: TestClient, alias: str, body: Any, status: int
) -> None:
    world.publish()
    assert api.put(f"/v1/models/rows/aliases/{alias}", json=body).status_code == status


def test_a_deleted_model_answers_no_more(world: World, api: TestClient) -> None:
    world.publish()
    world.publish()
    assert predict(api, "rows").json()["model"] == "rows@2"
    assert api.delete("/v1/models/rows@2").status_code == 204
    assert predict(api, "rows").json()["model"] == "rows@1"
    api.put("/v1/models/rows/aliases/live", json={"version": 1})
    assert api.delete("/v1/models/rows@1").status_code == 409
    assert api.delete("/v1/models/rows@live").status_code == 409
    assert api.delete("/v1/models/rows").status_code == 204
    assert predict(api, "rows").status_code == 404
    assert api.get("/v1/models").json()["data"] == []


# Weights


def test_weights_are_safetensors_named_by_their_hash(world: World, api: TestClient) -> None:
    checkpoint = world.publish()
    answer = api.get("/v1/models/rows/weights")
    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["ETag"] == f'"{checkpoint.weights_blob}"'
    assert "rows-1.safetensors" in answer.headers["Content-Disposition"]
    for name, tensor in train().trained.learner.state_dict().items():
        assert torch.equal(load(answer.content)[name], tensor)
    head = api.head("/v1/models/rows/weights")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(answer.content))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-20", slice(-20, None)),
        ("bytes=50-99999999", slice(50, None)),
        ("bytes=0-0", slice(0, 1)),
    ],
)
def test_a_range_gets_a_part(world: World, api: TestClient, header: str, part: slice) -> None:
    world.publish()
    whole = api.get("/v1/models/rows/weights").content
    answer = api.get("/v1/models/rows/weights", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, whole[part])
    start, stop, _ = part.indices(len(whole))
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"


@pytest.mark.parametrize(
    ("header", "status"),
    [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=9-3", 200), ("lines=1-2", 200)],
)
def test_a_range_that_is_none(world: World, api: TestClient, header: str, status: int) -> None:
    world.publish()
    answer = api.get("/v1/models/rows/weights", headers={"Range": header})
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["Content-Range"].startswith("bytes */")


def test_who_has_the_weights_gets_none(world: World, api: TestClient) -> None:
    world.publish()
    tag = api.head("/v1/models/rows/weights").headers["ETag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        answer = api.get("/v1/models/rows/weights", headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
    changed = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert api.get("/v1/models/rows/weights", headers=changed).status_code == 200
    same = {"Range": "bytes=0-9", "If-Range": tag}
    assert api.get("/v1/models/rows/weights", headers=same).status_code == 206


# Evaluation


def test_an_evaluation_is_a_job_with_the_models_checkpoint(world: World, api: TestClient) -> None:
    checkpoint = world.publish()
    answer = api.post("/v1/models/rows/evaluate", json={"dataset": world.dataset})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["status"], job["task"]) == ("evaluate", "queued", TASK)
    assert job["request"] == {"model": "rows@1", "dataset": world.dataset, "split": "test"}
    assert (job["base"], job["base_checkpoint"]) == ("rows@1", checkpoint.id)
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    with world.database.transaction() as session:
        stored = jobs.load(session, job["id"])
        assert (stored.base_checkpoint_id, stored.spec) == (checkpoint.id, checkpoint.spec)
        assert (stored.queue, stored.model_name) == ("cpu", None)


def test_an_evaluation_wants_a_split_and_a_data_set_of_the_models_task(
    world: World, api: TestClient
) -> None:
    world.publish()
    other = world.new_dataset(task="text-classification")
    wrong = api.post("/v1/models/rows/evaluate", json={"dataset": other})
    [error] = wrong.json()["errors"]
    assert (wrong.status_code, error["loc"], error["allowed"]) == (422, ["dataset"], TASK)
    body = {"dataset": world.dataset, "split": "validation"}
    lacking = api.post("/v1/models/rows/evaluate", json=body)
    [error] = lacking.json()["errors"]
    assert (lacking.status_code, error["loc"]) == (422, ["split"])
    assert error["allowed"] == ["train", "test"]
    unknown = api.post("/v1/models/rows/evaluate", json={"dataset": "ds_nothing"})
    assert unknown.status_code == 404
