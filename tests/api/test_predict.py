"""Predictions over HTTP: right answers, clear refusals, and no request that harms another."""

import asyncio
import base64
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from api.app import create_app
from api.settings import ApiSettings
from store.session import Database
from tasks.trained import Trained
from tests.api.serving_world import KEY, World, client, image_example, row, train


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def api(world: World, tmp_path: Path) -> Iterator[TestClient]:
    with client(world, tmp_path) as opened:
        yield opened


def predict(api: TestClient, ref: str, **body: Any) -> Any:
    return api.post(f"/v1/models/{ref}/predict", json=body)


def test_predictions_are_the_models_own_in_the_order_of_the_inputs(
    world: World, api: TestClient
) -> None:
    world.publish()
    inputs = [row(n) for n in range(20)]
    answer = predict(api, "rows", inputs=inputs)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "rows@1"
    trained = train().trained
    expected = trained.predict(trained.codec.read_inputs(inputs))
    for found, wanted in zip(answer.json()["predictions"], expected, strict=True):
        assert found["label"] == wanted.label
        assert found["scores"] == pytest.approx(wanted.scores, abs=1e-6)


def test_every_kind_of_reference_predicts(world: World, api: TestClient) -> None:
    checkpoint = world.publish()
    api.put("/v1/models/rows/aliases/live", json={"version": 1})
    refs = {"rows": "rows@1", "rows@1": "rows@1", "rows@live": "rows@1"}
    refs |= {checkpoint.id: checkpoint.id, str(checkpoint.job_id): f"{checkpoint.job_id}@1"}
    for ref, shown in refs.items():
        answer = predict(api, ref, inputs=[row(1)])
        assert (answer.status_code, answer.json().get("model")) == (200, shown)


def test_unknown_models_are_404_and_a_job_without_checkpoint_is_409(
    world: World, api: TestClient
) -> None:
    world.publish()
    job = world.start("later")
    for ref in ("nothing", "rows@2", "rows@nothing", "job_nothing", "ckpt_nothing"):
        assert predict(api, ref, inputs=[row(1)]).status_code == 404
    answer = predict(api, job.id, inputs=[row(1)])
    assert answer.status_code == 409
    assert "has no checkpoint to predict with" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"", ["body"]),
        (b"{", ["body"]),
        (b'{"inputs": [NaN]}', ["body"]),
        (b"[" * 100_000, ["body"]),
        (b"[]", ["body"]),
        (b"{}", ["inputs"]),
        (b'{"inputs": {}}', ["inputs"]),
        (b'{"inputs": []}', ["inputs"]),
        (b'{"inputs": [%s]}' % b",".join([b"{}"] * 1_001), ["inputs"]),
        (b'{"inputs": [{}], "input": 1}', ["input"]),
        (b'{"inputs": [{}], "parameters": []}', ["parameters"]),
        (b'{"inputs": [{}], "parameters": {"temperature": 1}}', ["parameters", "temperature"]),
        (b'{"inputs": [{}], "parameters": {"top_k": 0}}', ["parameters", "top_k"]),
        (b'{"inputs": [{}], "parameters": {"top_k": true}}', ["parameters", "top_k"]),
        (b'{"inputs": [{"a": 1}, {"a": "many"}]}', ["inputs", 1, "a"]),
        (b'{"inputs": [{"a": 1}, {"c": 1}]}', ["inputs", 1, "c"]),
        (b'{"inputs": [3]}', ["inputs", 0]),
        (b'{"inputs": [{"kind": "\\ud800"}]}', ["body"]),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_naming_the_place(
    world: World, api: TestClient, body: bytes, loc: list[Any]
) -> None:
    world.publish()
    headers = {"Content-Type": "application/json"}
    answer = api.post("/v1/models/rows/predict", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["errors"][0]["loc"] == loc, answer.text


def test_an_unknown_parameter_lists_what_is_allowed(world: World, api: TestClient) -> None:
    world.publish()
    answer = predict(api, "rows", inputs=[row(1)], parameters={"seed": 1})
    assert answer.json()["errors"][0]["allowed"] == ["top_k"]


def test_top_k_keeps_the_best_scores(world: World, api: TestClient) -> None:
    world.publish()
    full = predict(api, "rows", inputs=[row(1)]).json()["predictions"][0]
    best = predict(api, "rows", inputs=[row(1)], parameters={"top_k": 1}).json()["predictions"][0]
    assert best == {
        "label": full["label"],
        "scores": {full["label"]: full["scores"][full["label"]]},
    }


def test_a_content_type_the_model_does_not_read_is_415(world: World, api: TestClient) -> None:
    world.publish()
    for kind in ("image/png", "text/plain", "application/x-www-form-urlencoded"):
        answer = api.post("/v1/models/rows/predict", content=b"abc", headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["detail"]


def picture(colour: str) -> bytes:
    packed = BytesIO()
    Image.new("RGB", (12, 12), colour).save(packed, "PNG")
    return packed.getvalue()


def test_an_image_may_be_the_body_itself(world: World, api: TestClient) -> None:
    world.publish("pictures", image_example())
    raw = api.post(
        "/v1/models/pictures/predict",
        content=picture("red"),
        headers={"Content-Type": "image/png"},
    )
    assert raw.status_code == 200, raw.text
    encoded = base64.b64encode(picture("red")).decode()
    inside = predict(api, "pictures", inputs=[{"image": encoded}])
    assert raw.json() == inside.json()
    assert set(raw.json()["predictions"][0]["scores"]) == {"blue", "red"}
    broken = api.post(
        "/v1/models/pictures/predict", content=b"no", headers={"Content-Type": "image/png"}
    )
    assert broken.status_code == 422
    assert broken.json()["errors"][0]["loc"][:2] == ["inputs", 0]
    text = api.post(
        "/v1/models/pictures/predict", content=b"no", headers={"Content-Type": "text/plain"}
    )
    assert "image/*" in text.json()["detail"]


def test_a_key_is_needed(world: World, api: TestClient) -> None:
    world.publish()
    answer = api.post(
        "/v1/models/rows/predict", json={"inputs": [row(1)]}, headers={"Authorization": "Bearer x"}
    )
    assert answer.status_code == 401


def test_a_body_beyond_the_limit_is_413(world: World, tmp_path: Path) -> None:
    world.publish()
    with client(world, tmp_path, body_bytes=1_000) as api:
        assert predict(api, "rows", inputs=[row(1)]).status_code == 200
        assert predict(api, "rows", inputs=[{"kind": "x" * 1_000}]).status_code == 413


def test_predictions_are_counted(world: World, api: TestClient) -> None:
    world.publish("counted")
    predict(api, "counted", inputs=[row(1), row(2)])
    text = api.get("/metrics").text
    labels = '{model="counted",task="tabular-classification"}'
    assert f"modelyard_predictions_total{labels} 2.0" in text
    assert f"modelyard_prediction_seconds_count{labels} 1.0" in text
    assert "modelyard_resident_models 1.0" in text


def test_the_document_describes_every_kind_of_body(api: TestClient) -> None:
    operation = api.get("/openapi.json").json()["paths"]["/v1/models/{ref}/predict"]["post"]
    assert operation["operationId"] == "predict"
    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "image/*",
        "multipart/form-data",
    }
    assert operation["security"] == [{"key": []}]


# Many at once


def crowd(
    world: World, folder: Path, requests: list[Any], **settings: Any
) -> list[httpx2.Response]:
    """The answers to requests that are all sent at the same moment."""
    url = world.database.engine.url.render_as_string(hide_password=False)
    found = ApiSettings(data_dir=folder, database_url=url, admin_key=KEY, **settings)
    app = create_app(found)

    async def send() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://t", headers=headers) as api,
        ):
            sent = (api.post("/v1/models/rows/predict", json=body) for body in requests)
            return await asyncio.gather(*sent)

    return asyncio.run(send())


def test_bad_inputs_in_a_crowd_fail_alone(world: World, tmp_path: Path) -> None:
    world.publish()
    bad = {"inputs": [row(0), {"a": "nonsense"}]}
    requests = [bad if n % 5 == 0 else {"inputs": [row(n)]} for n in range(50)]
    answers = crowd(world, tmp_path, requests)
    trained = train().trained
    for n, answer in enumerate(answers):
        if n % 5 == 0:
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["loc"] == ["inputs", 1, "a"]
        else:
            [expected] = trained.predict(trained.codec.read_inputs([row(n)]))
            [found] = answer.json()["predictions"]
            assert found["scores"] == pytest.approx(expected.scores, abs=1e-6)


def test_a_crowd_beyond_the_queue_is_told_to_come_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    go, real = threading.Event(), Trained.predict

    def slow(self: Trained, inputs: Any, batch_size: int = 256) -> Any:
        go.wait(0.3)  # nobody sets it: the model is slow
        return real(self, inputs, batch_size)

    monkeypatch.setattr(Trained, "predict", slow)
    requests = [{"inputs": [row(n)]} for n in range(20)]
    answers = crowd(world, tmp_path, requests, predict_queue=4)
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [503] * 15
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["type"].endswith(":busy")
