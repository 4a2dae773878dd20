"""From upload to prediction by HTTP alone, through real processes, on both ways to run."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client import Refused
from tests.processes import ROOT, Service, embedded, production
from tests.toys import toy
from worker.devices import cores

SMALL_CNN = {"name": "cnn", "channels": [8, 8]}


@pytest.fixture(scope="module", params=["embedded", "production"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    if request.param == "embedded":
        with embedded(folder) as running:
            yield running
    else:
        from tests.conftest import fresh_postgres

        server, redis = (request.getfixturevalue(name) for name in ("postgres_url", "redis_url"))
        with fresh_postgres(server) as url, production(folder, url, redis) as running:
            yield running


def _upload(service: Service, task: str, folder: Path, name: str) -> str:
    files = {part: upload.path for part, upload in toy(task, folder).items()}
    dataset = service.client.upload(task, name, files)
    assert dataset["status"] == "ready"
    return str(dataset["id"])


def test_a_data_set_becomes_a_model_that_predicts(service: Service, tmp_path: Path) -> None:
    client = service.client
    dataset = _upload(service, "tabular-classification", tmp_path, "flowers")
    job = client.submit(dataset, training={"epochs": 25}, name="flowers")
    assert job["status"] == "queued"
    assert job["resolved"]["task"]["architecture"]["name"]

    done = client.wait(job["id"])
    assert done["model"] == "flowers@1"
    assert done["metrics"]["validation"]["accuracy"] >= 0.8
    assert done["progress"]["percent"] == 100
    assert client.curves(job["id"])["validation/accuracy"]["values"]

    rows = [{"length": 3.0, "colour": "red", "picked": "2024-05-01"}, {"length": 6.2}]
    first, second = client.predict("flowers", rows)
    assert (first["label"], second["label"]) == ("iris", "rose")
    assert sum(first["scores"].values()) == pytest.approx(1, abs=1e-4)

    evaluation = client.wait(client.evaluate("flowers@1", dataset, "validation")["id"])
    assert evaluation["result"]["accuracy"] == pytest.approx(
        done["metrics"]["validation"]["accuracy"]
    )

    lines = "".join(f"{json.dumps(row)}\n" for row in [*rows, {"length": "long"}]).encode()
    path, files = "/v1/models/flowers@1/batch-predict", {"file": ("rows.jsonl", lines)}
    batch = client.wait(client.call("POST", path, files=files)["id"])
    assert (batch["progress"]["rows_done"], batch["result"]["failed"]) == (3, 1)
    stored = client.http.get(f"/v1/jobs/{batch['id']}/artifacts/predictions.jsonl").text
    answers = [json.loads(line) for line in stored.splitlines()]
    assert [answer["prediction"]["label"] for answer in answers[:2]] == ["iris", "rose"]
    assert answers[2]["errors"][0]["loc"] == ["line", 3, "length"]


@pytest.mark.skipif(cores() < 2, reason="on the CPU, two devices are two threads of a worker")
def test_a_job_of_two_devices_makes_a_model_that_predicts(service: Service, tmp_path: Path) -> None:
    client = service.client
    dataset = _upload(service, "tabular-classification", tmp_path, "flowers")
    task = {"name": "tabular-classification", "architecture": {"name": "mlp"}}
    asked = {"resources": {"devices": 2, "queue": "cpu"}, "training": {"epochs": 25}}
    done = client.wait(client.submit(dataset, name="in-two", task=task, **asked)["id"])
    assert (done["model"], done["devices"]) == ("in-two@1", 2)
    assert done["metrics"]["validation"]["accuracy"] >= 0.8
    first, second = client.predict("in-two", [{"length": 3.0}, {"length": 6.2}])
    assert (first["label"], second["label"]) == ("iris", "rose")


def test_a_model_is_the_base_of_another_with_other_classes(
    service: Service, tmp_path: Path
) -> None:
    client = service.client
    dataset = _upload(service, "image-classification", tmp_path, "shapes")
    task = {"name": "image-classification", "architecture": SMALL_CNN}
    base = client.wait(
        client.submit(dataset, name="shapes", task=task, training={"epochs": 2})["id"]
    )
    taught = client.submit(
        dataset,
        name="taught",
        base=base["model"],
        transfer={"trainable_blocks": 0},
        training={"epochs": 2},
    )
    assert client.wait(taught["id"])["base"]


def test_both_queues_are_served(service: Service, tmp_path: Path) -> None:
    client = service.client
    dataset = _upload(service, "tabular-regression", tmp_path, "prices")
    queues = ["cpu", "gpu"] if "gpu" in service.parts else ["cpu"]
    jobs = [
        client.submit(
            dataset,
            name=f"prices-{queue}",
            resources={"queue": queue},
            training={"epochs": 3, "seed": 1},
        )["id"]
        for queue in queues
    ]
    hashes = set()
    for job_id in jobs:
        client.wait(job_id)
        weights = client.http.get(f"/v1/models/{job_id}/weights")
        assert weights.headers["ETag"].strip('"') == hashlib.sha256(weights.content).hexdigest()
        hashes.add(weights.headers["ETag"])
    assert len(hashes) == 1, "the same request gives the same weights, whoever trains it"


def test_events_are_told_live_and_can_be_replayed(service: Service, tmp_path: Path) -> None:
    client = service.client
    dataset = _upload(service, "text-classification", tmp_path, "reviews")
    task = {"name": "text-classification", "architecture": {"name": "bag-of-embeddings"}}
    job = client.submit(dataset, task=task, training={"epochs": 2})
    path, stream = f"/v1/jobs/{job['id']}/events", {"Accept": "text/event-stream"}

    def told(**headers: str) -> list[tuple[int, str]]:
        with client.http.stream("GET", path, headers={**stream, **headers}) as response:
            lines = list(response.iter_lines())
        ids = [int(line[4:]) for line in lines if line.startswith("id: ")]
        data = [json.dumps(json.loads(line[6:])) for line in lines if line.startswith("data: {")]
        return list(zip(ids, data, strict=False))

    live = told()
    assert any('"succeeded"' in data for _, data in live)
    assert [event for event, _ in live] == sorted({event for event, _ in live})
    middle = live[len(live) // 2][0]
    assert told(**{"Last-Event-ID": str(middle)}) == [e for e in live if e[0] > middle]


def test_bad_input_is_refused_and_the_service_goes_on(service: Service, tmp_path: Path) -> None:
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("a,label\n1,x\n2,y,3\n")
    with pytest.raises(Refused, match=r"422.*3"):
        service.client.upload("tabular-classification", "ragged", {"file": ragged})
    assert service.client.http.get("/readyz").status_code == 200


def test_a_job_outlives_the_death_of_its_worker(tmp_path: Path) -> None:
    with embedded(tmp_path / "data") as service:
        client = service.client
        dataset = _upload(service, "tabular-classification", tmp_path, "flowers")
        request = {
            "task": {"name": "tabular-classification", "architecture": {"name": "mlp"}},
            "training": {"epochs": 400, "seed": 3},
        }
        client.wait(client.submit(dataset, name="whole", **request)["id"])
        job = client.submit(dataset, name="killed", **request)
        while (client.job(job["id"])["progress"] or {}).get("step", 0) < 10:
            time.sleep(0.05)
        workers = client.call("GET", "/v1/workers")["data"]
        os.kill(workers[0]["pid"], signal.SIGKILL)
        killed = client.wait(job["id"])
        assert killed["model"] == "killed@1"
        events = client.call("GET", f"/v1/jobs/{job['id']}/events", params={"limit": 100})["data"]
        assert [e["data"].get("status") for e in events].count("running") == 2
        etags = {
            client.http.get(f"/v1/models/{name}/weights").headers["ETag"]
            for name in ("whole", "killed")
        }
        assert len(etags) == 1, "an interrupted training ends with the same weights"


ARCHITECTURE = '''"""Deep averaging of columns, dropped in by a test."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Backbone, TableBackbone


class Net(Backbone):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.layer = width, nn.Linear(inputs, width)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        return self.layer(torch.cat([numbers, categories.float()], 1)).relu()


class DroppedIn(TableBackbone):
    """One hidden layer over all columns."""
    name: Literal["dropped-in"] = "dropped-in"
    width: int = Field(16, ge=1, description="Units of the hidden layer.")

    def backbone(self, numeric: int, cardinalities: list[int]) -> Backbone:
        return Net(numeric + len(cardinalities), self.width)
'''


def test_a_new_architecture_is_one_new_file(tmp_path: Path) -> None:
    code = [line for line in ARCHITECTURE.splitlines() if line.strip()]
    assert len(code) <= 25
    root = tmp_path / "modelyard"
    packages = ("api", "cli", "migrations", "models", "store", "tasks", "worker")
    for package in packages:
        shutil.copytree(ROOT / package, root / package)
    (root / "models" / "dropped_in.py").write_text(ARCHITECTURE)

    with embedded(tmp_path / "data", root) as service:
        client = service.client
        document = client.call("GET", "/openapi.json")
        assert "DroppedIn" in document["components"]["schemas"]
        dataset = _upload(service, "tabular-classification", tmp_path, "flowers")
        architecture = {"name": "dropped-in", "width": 8}
        task = {"name": "tabular-classification", "architecture": architecture}
        done = client.wait(client.submit(dataset, task=task, training={"epochs": 8})["id"])
        assert done["resolved"]["task"]["architecture"] == architecture
        assert client.predict(done["model"], [{"length": 6.5, "colour": "red"}])[0]["label"]
        task["architecture"]["widht"] = 8
        with pytest.raises(Refused, match=r"422.*widht"):
            client.submit(dataset, task=task)
