"""Requests with an `Idempotency-Key`: every one that creates something is done once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.app import create_app
from api.settings import ApiSettings
from store.replies import KEPT_SECONDS
from store.tables import ApiKey, Dataset, Job, Pretrained, Project, Reply, Sweep
from tests.api.service import ADMIN_KEY, CHECKPOINT, ROWS, TASK, Service, Worker, errors_of
from tests.api.serving_world import train
from tests.packed import packed

Body = dict[str, Any]
EPOCHS = {"type": "int", "low": 1, "high": 2}
CREATES: dict[str, tuple[Body | None, Body | None]] = {
    "/v1/datasets": ({"name": "mine"}, {"name": "other"}),
    "/v1/pretrained": ({"name": "mine"}, {"name": "other"}),
    "/v1/models": ({"name": "mine"}, {"name": "other"}),
    "/v1/models/{ref}/exports": (
        {"format": "safetensors"},
        {"format": "safetensors", "priority": 1},
    ),
    "/v1/datasets/{dataset_id}/advice": ({}, {"seed": 1}),
    "/v1/jobs": ({"dataset": "DATASET"}, {"dataset": "DATASET", "priority": 1}),
    "/v1/jobs/{job_id}/retry": (None, None),
    "/v1/jobs/{job_id}/clone": ({"priority": 1}, None),
    "/v1/jobs/{job_id}/extend": ({"epochs": 1}, {"epochs": 2}),
    "/v1/models/{ref}/evaluate": (
        {"dataset": "DATASET", "split": "train"},
        {"dataset": "DATASET", "split": "validation"},
    ),
    "/v1/models/{ref}/batch-predict": (
        {"dataset": "DATASET", "split": "train"},
        {"dataset": "DATASET", "split": "validation"},
    ),
    "/v1/sweeps": (
        {"dataset": "DATASET", "space": {"training.epochs": EPOCHS}},
        {"dataset": "DATASET", "space": {"training.epochs": EPOCHS}, "trials": 3},
    ),
    "/v1/keys": ({"name": "a", "scopes": ["train"]}, {"name": "b", "scopes": ["train"]}),
    "/v1/projects": ({"name": "a"}, {"name": "b"}),
}
"""Every route that creates something, with a body for it and another one."""
CREATE_NOTHING = {
    "/hf/models/{ref}",
    "/hf/models/{ref}/feature-extraction",
    "/hf/models/{ref}/sentence-similarity",
    "/openai/v1/completions",
    "/openai/v1/embeddings",
    "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/pause",
    "/v1/jobs/{job_id}/resume",
    "/v1/jobs/{job_id}/stop",
    "/v1/models/{ref}/embed",
    "/v1/models/{ref}/explain",
    "/v1/models/{ref}/predict",
    "/v1/storage/clean-up",
    "/v1/sweeps/{sweep_id}/cancel",
    "/v1/sweeps/{sweep_id}/stop",
    "/v1/webhooks/deliveries/{delivery_id}/retry",
    "/v1/webhooks/secret/rotate",
    "/v2/models/{ref}/infer",
    "/v2/models/{ref}/versions/{version}/infer",
    "/v2/repository/index",
    "/v2/repository/models/{ref}/load",
    "/v2/repository/models/{ref}/unload",
}


def test_every_post_takes_a_key_or_creates_nothing() -> None:
    paths = create_app(ApiSettings()).openapi()["paths"]
    posts = {path: methods["post"] for path, methods in paths.items() if "post" in methods}
    takes_a_key = {
        path
        for path, operation in posts.items()
        if "Idempotency-Key" in {each["name"] for each in operation.get("parameters", [])}
    }
    assert takes_a_key == set(CREATES)
    assert posts.keys() - takes_a_key == CREATE_NOTHING


@cache
def a_model() -> bytes:
    example = train()
    with TemporaryDirectory() as folder:
        return packed(example.spec, example.trained, Path(folder)).read_bytes()


@pytest.fixture
def send(
    client: TestClient, admin: TestClient, dataset: str, job: str, worker: Worker
) -> Iterator[Callable[..., Any]]:
    """Sends a request that creates something. Jobs are such as can be retried or extended."""
    worker.succeed(job)
    failed = client.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    worker.finish(worker.take(failed), "failed")

    def send(path: str, body: Body | None, key: str) -> Any:
        who = admin if path in ("/v1/keys", "/v1/projects") else client
        headers = {"Idempotency-Key": key}
        if path == "/v1/datasets":
            return _upload(who, headers, **body or {})
        if path in ("/v1/pretrained", "/v1/models"):
            file = CHECKPOINT if path == "/v1/pretrained" else ("model.zip", a_model())
            return who.post(path, headers=headers, data=body, files={"file": file})
        there = path.format(job_id=failed if "retry" in path else job, ref=job, dataset_id=dataset)
        known = body and {
            name: dataset if value == "DATASET" else value for name, value in body.items()
        }
        how = "data" if "batch" in path else "json"
        return who.post(there, headers=headers, **{how: known})

    yield send
    for left in client.get("/v1/jobs", params={"status": "queued"}).json()["data"]:
        client.post(f"/v1/jobs/{left['id']}/cancel")  # not to be found by another test's worker


@pytest.mark.parametrize("path", CREATES)
def test_a_repeated_request_gets_the_first_answer(
    service: Service, send: Callable[..., Any], path: str
) -> None:
    body, _ = CREATES[path]
    key = uuid4().hex
    first = send(path, body, key)
    assert first.status_code in (201, 202), first.text
    assert "Idempotency-Replayed" not in first.headers
    before = _counts(service)
    again = send(path, body, key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.status_code == first.status_code
    assert again.headers.get("Location") == first.headers.get("Location")
    assert again.json() == {**first.json(), **({"key": None} if path == "/v1/keys" else {})}
    assert _counts(service) == before


@pytest.mark.parametrize("path", [path for path, (body, other) in CREATES.items() if body != other])
def test_a_key_cannot_come_with_another_body(send: Callable[..., Any], path: str) -> None:
    body, other = CREATES[path]
    key = uuid4().hex
    send(path, body, key)
    (error,) = errors_of(send(path, other, key))
    assert error["loc"] == ["header", "Idempotency-Key"]
    assert error["found"] == key
    assert error["allowed"]


def test_a_key_cannot_come_to_another_path(client: TestClient, dataset: str, job: str) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    other = client.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    assert client.post(f"/v1/jobs/{job}/clone", headers=headers).status_code == 202
    (error,) = errors_of(client.post(f"/v1/jobs/{other}/clone", headers=headers))
    assert error["loc"] == ["header", "Idempotency-Key"]


def test_the_order_of_fields_makes_no_other_request(client: TestClient, dataset: str) -> None:
    headers, training = {"Idempotency-Key": uuid4().hex}, {"epochs": 2, "seed": 1}
    first = client.post(
        "/v1/jobs", json={"dataset": dataset, "training": training}, headers=headers
    )
    turned = dict(reversed(training.items()))
    again = client.post("/v1/jobs", json={"training": turned, "dataset": dataset}, headers=headers)
    assert again.json() == first.json()


def test_a_key_of_another_project_is_another_key(service: Service, client: TestClient) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    mine = _upload(client, headers).json()
    theirs = _upload(service.client(service.key("train")), headers)
    assert theirs.status_code == 201
    assert "Idempotency-Replayed" not in theirs.headers
    assert theirs.json()["id"] != mine["id"]


def test_a_refused_request_may_be_corrected_under_its_key(client: TestClient, dataset: str) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    errors_of(client.post("/v1/jobs", json={"dataset": "ds_nothing"}, headers=headers), 404)
    errors_of(client.post("/v1/jobs", json={"dataset": dataset, "base": "x"}, headers=headers), 404)
    answer = client.post("/v1/jobs", json={"dataset": dataset}, headers=headers)
    assert answer.status_code == 202
    assert "Idempotency-Replayed" not in answer.headers


def test_after_a_day_a_key_is_a_new_one(service: Service, client: TestClient, dataset: str) -> None:
    headers, body = {"Idempotency-Key": uuid4().hex}, {"dataset": dataset}
    first = client.post("/v1/jobs", json=body, headers=headers).json()
    for age, is_kept in ((KEPT_SECONDS - 60, True), (120, False)):
        with service.database.transaction() as session:
            reply = session.scalars(select(Reply).where(Reply.key == headers["Idempotency-Key"]))
            reply.one().created_at -= timedelta(seconds=age)
        again = client.post("/v1/jobs", json=body, headers=headers).json()
        assert (again["id"] == first["id"]) is is_kept


def test_a_keys_text_is_not_kept_with_its_reply(service: Service, admin: TestClient) -> None:
    headers, body = {"Idempotency-Key": uuid4().hex}, {"name": uuid4().hex, "scopes": ["train"]}
    text = admin.post("/v1/keys", json=body, headers=headers).json()["key"]
    again = admin.post("/v1/keys", json=body, headers=headers).json()
    assert again["key"] is None
    assert service.client(text).get("/v1/jobs").status_code == 200
    with service.database.transaction(read_only=True) as session:
        made = session.scalars(select(ApiKey).where(ApiKey.name == body["name"])).all()
        assert [key.id for key in made] == [again["id"]]
        kept = [str(reply.body) for reply in session.scalars(select(Reply))]
    assert any(again["id"] in body for body in kept)
    assert not any(text in body for body in kept)


def test_the_header_is_bounded(client: TestClient, dataset: str) -> None:
    for key in ("", "a b", "x" * 256):
        headers = {"Idempotency-Key": key}
        (error,) = errors_of(client.post("/v1/jobs", json={"dataset": dataset}, headers=headers))
        assert error["loc"] == ["header", "Idempotency-Key"]


# Uploads


def test_a_repeated_upload_is_not_checked_again(service: Service, client: TestClient) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first = _upload(client, headers)
    checker = service.app.state.checker
    memory = checker._bytes
    try:
        checker._bytes = 1  # no check could pass
        again = _upload(client, headers)
        errors_of(_upload(client, {}))
    finally:
        checker._bytes = memory
    assert again.json() == first.json()


@pytest.mark.parametrize(
    "change",
    [
        {"content": ROWS + "1,2,odd\n"},
        {"file": "other.csv"},
        {"part": "train"},
        {"options": '{"split": {"seed": 1}}'},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_upload_is_another_request(client: TestClient, change: dict[str, str]) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    _upload(client, headers)
    (error,) = errors_of(_upload(client, headers, **change))
    assert error["loc"] == ["header", "Idempotency-Key"]


def test_a_refused_upload_may_be_corrected_under_its_key(client: TestClient) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    errors_of(_upload(client, headers, content="a,b,label\n1,2,x\n1,2,3,4\n"))
    assert _upload(client, headers).status_code == 201


# All at once, on both databases


@pytest.fixture
def both(database_url: str, tmp_path: Path) -> Iterator[Service]:
    settings = ApiSettings(
        database_url=database_url, data_dir=tmp_path / "data", admin_key=ADMIN_KEY, checks=4
    )
    settings.data_dir.mkdir()
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as start:
        yield Service(app, settings.data_dir, start)


def test_eight_equal_requests_at_once_create_one_thing(both: Service) -> None:
    dataset = _upload(both.client(ADMIN_KEY), {}).json()["id"]
    job = both.client(ADMIN_KEY).post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    for path, body, table in (
        ("/v1/jobs", {"dataset": dataset}, Job),
        (f"/v1/jobs/{job}/clone", {"priority": 3}, Job),
        ("/v1/keys", {"name": "k", "scopes": ["train"]}, ApiKey),
        ("/v1/projects", {"name": "new"}, Project),
    ):
        before, headers = _counts(both)[table], {"Idempotency-Key": uuid4().hex}
        answers = _at_once(8, lambda: both.client(ADMIN_KEY).post(path, json=body, headers=headers))  # noqa: B023
        assert {answer.status_code for answer in answers} <= {201, 202}, answers[0].text
        texts = [answer.json().pop("key", None) for answer in answers]
        assert len([text for text in texts if text]) == (table is ApiKey)
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 7
        assert _counts(both)[table] == before + 1


def test_eight_equal_projects_without_a_key_are_one(both: Service) -> None:
    answers = _at_once(8, lambda: both.client(ADMIN_KEY).post("/v1/projects", json={"name": "new"}))
    assert {answer.status_code for answer in answers} == {201}, answers[0].text
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_four_equal_uploads_at_once_create_one_data_set(both: Service) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    answers = _at_once(4, lambda: _upload(both.client(ADMIN_KEY), headers))
    assert [answer.status_code for answer in answers] == [201] * 4, answers[0].text
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert _counts(both)[Dataset] == 1


def _at_once(number: int, send: Callable[[], Any]) -> list[Any]:
    barrier = Barrier(number)

    def wait_and_send(_: int) -> Any:
        barrier.wait()
        return send()

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(wait_and_send, range(number)))


def _upload(
    client: TestClient,
    headers: dict[str, str],
    *,
    content: str = ROWS,
    file: str = "rows.csv",
    part: str = "file",
    **form: str,
) -> Any:
    data, files = {"task": TASK, **form}, {part: (file, content)}
    return client.post("/v1/datasets", data=data, files=files, headers=headers)


def _counts(service: Service) -> dict[Any, int]:
    """How many there are of everything that can be created."""
    with service.database.transaction(read_only=True) as session:
        return {
            table: session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (ApiKey, Dataset, Job, Pretrained, Project, Sweep)
        }
