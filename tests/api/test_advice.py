"""Advice on bases over HTTP: what is compared, and what is refused before anything is queued."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from store.tables import Dataset
from tests.api.service import TASK, Service, Worker, errors_of, zipped
from tests.published import image_network

Upload = Callable[..., Any]
NEURAL = {"name": "mlp", "layers": 1, "width": 8}
FOREST = {"name": "random-forest"}


def model(client: TestClient, worker: Worker, dataset: str, name: str, **task: Any) -> str:
    """The reference of a model that a job made."""
    asked = {"dataset": dataset, "name": name, "task": {"name": TASK, **task}}
    job = client.post("/v1/jobs", json=asked)
    assert job.status_code == 202, job.text
    worker.succeed(job.json()["id"])
    return f"{name}@1"


def advise(client: TestClient, dataset: str, **asked: Any) -> Any:
    return client.post(f"/v1/datasets/{dataset}/advice", json=asked)


def bases(answer: Any) -> list[str | None]:
    assert answer.status_code == 202, answer.text
    return [candidate["base"] for candidate in answer.json()["resolved"]["candidates"]]


def test_all_of_ones_own_models_that_can_be_bases_are_compared(
    client: TestClient, worker: Worker, upload: Upload, dataset: str
) -> None:
    other = upload(name="other").json()["id"]
    model(client, worker, other, "first", architecture=NEURAL)
    model(client, worker, other, "forest", architecture=FOREST)
    model(client, worker, other, "second", architecture=NEURAL)
    answer = advise(client, dataset)
    job = answer.json()
    assert bases(answer) == ["second@1", "first@1", None]
    (left_out,) = job["resolved"]["left_out"]
    assert left_out["base"] == "forest@1"
    assert "has no backbone" in left_out["reason"]
    assert (job["kind"], job["status"], job["dataset"]) == ("advise", "queued", dataset)
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    architectures = [
        each["spec"]["task"]["architecture"]["name"] for each in job["resolved"]["candidates"]
    ]
    assert architectures[:2] == ["mlp", "mlp"]
    assert job["resolved"]["candidates"][0]["spec"]["task"]["architecture"]["width"] == 8


def test_the_newest_version_stands_for_a_model_unless_others_are_named(
    client: TestClient, worker: Worker, upload: Upload, dataset: str
) -> None:
    other = upload(name="other").json()["id"]
    for _ in range(2):
        model(client, worker, other, "mine", architecture=NEURAL)
    assert bases(advise(client, dataset)) == ["mine@2", None]
    assert bases(advise(client, dataset, models=["mine@1", "mine"])) == ["mine@1", "mine@2", None]
    assert bases(advise(client, dataset, models=[])) == [None]


def test_without_any_model_the_inputs_alone_are_looked_at(client: TestClient, dataset: str) -> None:
    assert bases(advise(client, dataset)) == [None]


def test_a_model_that_is_named_and_of_no_use_is_refused_by_its_name(
    client: TestClient, worker: Worker, upload: Upload, dataset: str
) -> None:
    other = upload(name="other").json()["id"]
    good = model(client, worker, other, "good", architecture=NEURAL)
    forest = model(client, worker, other, "forest", architecture=FOREST)
    (error,) = errors_of(advise(client, dataset, models=[good, forest]))
    assert error["loc"] == ["models", 1]
    assert error["msg"].startswith("forest@1: random-forest has no backbone")
    assert "mlp" in error["allowed"]


def test_what_is_not_there_is_not_found(service: Service, client: TestClient, dataset: str) -> None:
    errors_of(advise(client, dataset, models=["unknown"]), 404)
    errors_of(advise(client, "ds_unknown"), 404)
    errors_of(advise(service.client(service.key("train")), dataset), 404)


def test_a_data_set_that_is_not_ready_is_a_conflict(
    service: Service, client: TestClient, dataset: str
) -> None:
    with service.database.transaction() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset).values(status="checking"))
    errors_of(advise(client, dataset), 409)


def test_a_task_whose_targets_are_many_per_example_has_no_advice(
    client: TestClient, upload: Upload
) -> None:
    texts = "\n\n".join(f"text {n} goes on in a way of its own" for n in range(200))
    made = upload(texts, task="text-generation", file="texts.txt")
    assert made.status_code == 201, made.text
    (error,) = errors_of(advise(client, made.json()["id"]))
    assert error["loc"] == ["dataset"]
    assert error["found"] == "text-generation"
    assert "image-classification" in error["allowed"]
    assert "text-generation" not in error["allowed"]


def test_published_checkpoints_are_compared_and_those_of_no_use_refused_by_place(
    client: TestClient, images: str, tmp_path: Path
) -> None:
    image_network(tmp_path, (8, 16))
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    folder = {name: (tmp_path / name).read_bytes() for name in names}
    sent = client.post("/v1/pretrained", files={"file": ("our.zip", zipped(folder))})
    assert sent.status_code == 201, sent.text
    ours = {"name": "pretrained", "checkpoint": sent.json()["id"]}
    answer = advise(client, images, architectures=[ours])
    assert answer.status_code == 202, answer.text
    first, last = answer.json()["resolved"]["candidates"]
    assert first["spec"]["task"]["architecture"]["config"]["model_type"] == "convnext"
    assert (first["base"], last["base"]) == (None, None)
    gone = {"name": "pretrained", "checkpoint": "pre_gone"}
    errors_of(advise(client, images, architectures=[ours, gone]), 404)
    (error,) = errors_of(advise(client, images, architectures=[ours, {"name": "cnn"}]))
    assert error["loc"] == ["architectures", 1, "name"]
    (error,) = errors_of(advise(client, images, architectures=[{"name": "mlp"}]))
    assert error["loc"][:2] == ["architectures", 0]
    other = {**folder, "config.json": b'{"model_type": "bert"}'}
    sent = client.post("/v1/pretrained", files={"file": ("text.zip", zipped(other))})
    bert = {"name": "pretrained", "checkpoint": sent.json()["id"]}
    (error,) = errors_of(advise(client, images, architectures=[bert]))
    assert error["loc"] == ["architectures", 0, "checkpoint"]
    assert "bert" in error["msg"]


@pytest.mark.parametrize(
    "asked", [{"examples": 1}, {"examples": 10**6}, {"models": ["m"] * 101}, {"seed": -1}, {"n": 1}]
)
def test_a_request_out_of_bounds_is_refused(
    client: TestClient, dataset: str, asked: dict[str, Any]
) -> None:
    (error,) = errors_of(advise(client, dataset, **asked))
    assert error["loc"][0] in asked


def test_advice_is_no_training(client: TestClient, worker: Worker, dataset: str) -> None:
    job = advise(client, dataset).json()["id"]
    errors_of(client.post(f"/v1/jobs/{job}/stop"), 409)
    taken = worker.take(job)
    worker.finish(taken, "failed", error={"code": "internal", "message": "It failed."})
    for wish, body in (("clone", {}), ("extend", {"epochs": 1})):
        errors_of(client.post(f"/v1/jobs/{job}/{wish}", json=body), 409)
    again = client.post(f"/v1/jobs/{job}/retry").json()
    assert (again["kind"], again["parent"]) == ("advise", job)
    errors_of(client.post("/v1/jobs", json={"dataset": dataset, "base": job}), 404)
