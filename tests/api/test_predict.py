"""Predictions over HTTP: right answers, clear refusals, and no request that harms another."""

import asyncio
import base64
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from api.app import create_app
from api.serving import batcher
from api.serving.loading import Loader
from api.settings import ApiSettings
from store.session import Database
from tasks.trained import Trained
from tests.api.serving_world import (
    KEY,
    World,
    client,
    image_example,
    picture,
    row,
    train,
    untrained,
)
from tests.toys import walk


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


def test_beside_a_raw_body_parameters_stand_in_the_query(world: World, api: TestClient) -> None:
    world.publish("pictures", image_example())

    def ask(**query: object) -> httpx2.Response:
        headers = {"Content-Type": "image/png"}
        path = "/v1/models/pictures/predict"
        return api.post(path, content=picture("red"), headers=headers, params=query)

    best = ask(top_k=1)
    assert best.status_code == 200, best.text
    assert len(best.json()["predictions"][0]["scores"]) == 1
    for name, value in (("top_k", "many"), ("no_such", "1")):
        refused = ask(**{name: value})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["loc"] == ["parameters", name]


def test_a_predicted_image_is_the_body_of_the_answer_where_that_is_asked_for(
    world: World, api: TestClient
) -> None:
    world.publish("cleaner", untrained("image-to-image"))
    path, sent = "/v1/models/cleaner/predict", {"Content-Type": "image/png"}
    [inside] = api.post(path, content=picture("red"), headers=sent).json()["predictions"]
    for accepted in ("image/png", "image/*", "text/html, image/png;q=0.9"):
        answer = api.post(path, content=picture("red"), headers={**sent, "Accept": accepted})
        assert answer.headers["content-type"] == "image/png"
        assert answer.content == base64.b64decode(inside["image"])
    anything = api.post(path, content=picture("red"), headers={**sent, "Accept": "*/*"})
    assert anything.json()["predictions"] == [inside]
    two = {"inputs": [{"image": base64.b64encode(picture("red")).decode()}] * 2}
    refused = api.post(path, json=two, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["inputs"])


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


def test_a_clip_may_be_the_body_itself(world: World, api: TestClient) -> None:
    world.publish("walks", untrained("video-classification"))
    clip = walk(np.random.default_rng(0), right=True)
    path, headers = "/v1/models/walks/predict", {"Content-Type": "video/mp4"}
    raw = api.post(path, content=clip, headers=headers)
    assert raw.status_code == 200, raw.text
    encoded = base64.b64encode(clip).decode()
    assert raw.json() == predict(api, "walks", inputs=[{"clip": encoded}]).json()
    assert set(raw.json()["predictions"][0]["scores"]) == {"left", "right"}
    broken = api.post(path, content=clip[:-9], headers=headers)
    assert broken.status_code == 422
    assert broken.json()["errors"][0]["msg"] == "the file is cut off"
    picture = api.post(path, content=b"GIF89a", headers={"Content-Type": "image/gif"})
    assert (picture.status_code, "video/*" in picture.json()["detail"]) == (415, True)


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "3601"])
def test_a_timeout_that_is_none_is_refused(world: World, api: TestClient, given: str) -> None:
    world.publish()
    headers = {"X-Request-Timeout": given}
    answer = api.post("/v1/models/rows/predict", json={"inputs": [row(1)]}, headers=headers)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert (error["loc"], error["found"]) == (["header", "X-Request-Timeout"], given)


def test_a_request_whose_time_is_over_is_504_and_is_not_computed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    model = Held(monkeypatch)

    async def story(api: httpx2.AsyncClient) -> None:
        first = asyncio.ensure_future(ask(api, 0))
        await model.is_held()
        late = await ask(api, 1, {"X-Request-Timeout": "0.05"})
        assert late.status_code == 504
        assert late.json()["type"].endswith(":late")
        in_time = asyncio.ensure_future(ask(api, 2, {"X-Request-Timeout": "30"}))
        await asyncio.sleep(0.01)
        model.go.set()
        assert {(await first).status_code, (await in_time).status_code} == {200}

    tell(world, tmp_path, story)
    assert model.asked == [row(0), row(2)]


def test_what_a_caller_waited_for_is_not_computed_once_it_has_left(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    model = Held(monkeypatch)
    url = world.database.engine.url.render_as_string(hide_password=False)
    app = create_app(ApiSettings(data_dir=tmp_path, database_url=url, admin_key=KEY))
    config = uvicorn.Config(app, port=0, log_level="error")

    async def story() -> None:
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {KEY}"}
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, headers=headers) as api:
            first = asyncio.ensure_future(ask(api, 0))
            await model.is_held()
            leaving = asyncio.ensure_future(ask(api, 1))
            await asyncio.sleep(0.2)
            leaving.cancel()
            await asyncio.sleep(0.2)
            model.go.set()
            assert (await first).status_code == 200
            metrics = (await api.get("/metrics")).text
            assert 'reason="left"' in metrics
        server.should_exit = True
        await serving

    asyncio.run(story())
    assert model.asked == [row(0)]


def test_an_answer_tells_where_its_time_went(world: World, api: TestClient) -> None:
    world.publish()
    told = predict(api, "rows", inputs=[row(1)]).headers["Server-Timing"]
    parts = dict(part.split(";dur=") for part in told.split(", "))
    assert list(parts) == ["queue", "model", "total"]
    spent = {name: float(milliseconds) for name, milliseconds in parts.items()}
    assert spent["queue"] >= 0
    assert 0 < spent["model"] < spent["total"]


def test_a_request_that_memory_does_not_suffice_for_is_503_alone_and_the_next_one_is_answered(
    world: World, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, model = world.publish("other"), world.publish()
    for name in ("other", "rows"):
        assert predict(api, name, inputs=[row(1)]).status_code == 200
    residents = api.app.state.serving.residents  # type: ignore[attr-defined]
    real = Trained._outputs

    def hungry(self: Trained, batch: Any) -> Any:
        # More than the machine has: what PyTorch says then is what counts here.
        torch.empty(2**60 if (batch.inputs[0] > 1.9).all(1).any() else 1)
        return real(self, batch)

    monkeypatch.setattr(Trained, "_outputs", hungry)
    refused = predict(api, "rows", inputs=[row(1), {"a": 1e9, "b": 1e9}])
    assert refused.status_code == 503, refused.text
    assert refused.headers["Retry-After"] == "5"
    assert "Memory does not suffice" in refused.json()["detail"]
    assert other.id not in residents
    assert model.id in residents
    assert predict(api, "rows", inputs=[{"kind": "x"}, {"kind": "y"}]).status_code == 200
    monkeypatch.undo()
    assert predict(api, "other", inputs=[row(1)]).status_code == 200


def test_a_model_that_memory_does_not_suffice_for_is_503_until_it_does(
    world: World, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("small")
    world.publish("large", train(width=16))
    assert predict(api, "small", inputs=[row(1)]).status_code == 200
    real, tried = Loader.load, []

    def hungry(self: Loader, checkpoint: Any) -> Any:
        tried.append(checkpoint.id)
        if len(tried) == 1:
            torch.empty(2**60)
        return real(self, checkpoint)

    monkeypatch.setattr(Loader, "load", hungry)
    refused = predict(api, "large", inputs=[row(1)])
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert len(api.app.state.serving.residents) == 0  # type: ignore[attr-defined]
    assert predict(api, "large", inputs=[row(1)]).status_code == 200


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
        "audio/*",
        "video/*",
        "multipart/form-data",
    }
    assert operation["security"] == [{"key": []}]


# Many at once


class Held:
    """Trained models that stand still in their first batch until `go`, and the rows they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.asked = threading.Event(), list[Any]()
        self._is_held = threading.Event()
        real = Trained.predict

        def held(model: Trained, inputs: Any, batch_size: int = 256) -> Any:
            if any(given.root for given in inputs):  # warming up aside
                self.asked += [given.root for given in inputs]
                self._is_held.set()
                assert self.go.wait(30)
            return real(model, inputs, batch_size)

        monkeypatch.setattr(Trained, "predict", held)
        monkeypatch.setattr(batcher, "QUICK_SECONDS", 0.0)

    async def is_held(self) -> None:
        while not self._is_held.is_set():
            await asyncio.sleep(0.005)


async def ask(
    api: httpx2.AsyncClient, number: int, headers: dict[str, str] | None = None
) -> httpx2.Response:
    body = {"inputs": [row(number)]}
    return await api.post("/v1/models/rows/predict", json=body, headers=headers)


def tell(
    world: World, folder: Path, story: Callable[[httpx2.AsyncClient], Coroutine[Any, Any, None]]
) -> None:
    """Runs a story with a client of the whole application."""
    url = world.database.engine.url.render_as_string(hide_password=False)
    app = create_app(ApiSettings(data_dir=folder, database_url=url, admin_key=KEY))

    async def told() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://t", headers=headers) as api,
        ):
            await story(api)

    asyncio.run(told())


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
    assert statuses == [200] * 4 + [503] * 16
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["type"].endswith(":busy")


def test_objects_are_followed_through_a_clip_and_a_film_of_them_may_be_the_answer(
    world: World, api: TestClient
) -> None:
    world.publish("drift", untrained("object-tracking"))
    clip = walk(np.random.default_rng(0), right=True)
    path, headers = "/v1/models/drift/predict", {"Content-Type": "video/mp4"}
    plain = api.post(path, content=clip, headers=headers)
    assert plain.status_code == 200, plain.text
    [prediction] = plain.json()["predictions"]
    assert (len(prediction["frames"]), prediction["video"]) == (6, "")
    asked = f"{path}?annotated=true"
    inside = api.post(asked, content=clip, headers=headers).json()["predictions"][0]["video"]
    film = api.post(asked, content=clip, headers=headers | {"Accept": "video/mp4"})
    assert (film.status_code, film.headers["content-type"]) == (200, "video/mp4")
    assert film.content == base64.b64decode(inside)
    assert film.content[4:8] == b"ftyp"
    empty = api.post(path, content=clip, headers=headers | {"Accept": "video/mp4"})
    assert empty.status_code == 422
    assert empty.json()["errors"][0]["msg"] == "no video was made"
