"""Jobs over HTTP: what is asked for, what becomes of it, and what is refused."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import workers
from tests.api.service import ROWS, TASK, Service, Worker, errors_of

NEURAL = {"name": "mlp", "layers": 1, "width": 8}


def submit(client: TestClient, dataset: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"dataset": dataset, **more})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


# Submitting


def test_only_the_data_set_is_needed_and_the_answer_shows_what_was_chosen(
    client: TestClient, dataset: str
) -> None:
    answer = client.post("/v1/jobs", json={"dataset": dataset})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["name"], job["status"]) == ("train", "rows", "queued")
    assert job["request"] == {"dataset": dataset}
    resolved = job["resolved"]
    assert resolved["task"]["name"] == TASK
    assert "auto" not in str(resolved)
    assert job["progress"]["epochs"] == resolved["training"]["epochs"] > 0
    assert job["waiting"]


def test_what_is_asked_for_is_what_is_resolved(client: TestClient, dataset: str) -> None:
    job = submit(
        client,
        dataset,
        name="my-model",
        task={"name": TASK, "architecture": NEURAL},
        training={
            "epochs": 7,
            "batch_size": 4,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
            "seed": 3,
        },
        priority=5,
        budget={"minutes": 0.5},
        resources={"devices": 1, "queue": "cpu"},
        base=None,
        transfer=None,
        webhook=None,
    )
    assert (job["name"], job["priority"], job["queue"]) == ("my-model", 5, "cpu")
    assert job["budget"] == {"minutes": 0.5}
    training = job["resolved"]["training"]
    assert (training["epochs"], training["batch_size"], training["seed"]) == (7, 4, 3)
    assert training["optimizer"]["learning_rate"] == 0.01
    assert job["resolved"]["task"]["architecture"]["width"] == 8


@pytest.mark.parametrize(
    ("file", "name"),
    [("My Rows (2024).csv", "my-rows-2024"), ("job_1.csv", "job-1"), ("??.csv", "model")],
)
def test_a_data_sets_name_becomes_a_models_name(
    client: TestClient, upload: Any, file: str, name: str
) -> None:
    assert submit(client, upload(file=file).json()["id"])["name"] == name


def test_the_devices_asked_for_stay_with_the_job_and_those_made_of_it(
    client: TestClient, dataset: str, worker: Worker
) -> None:
    task = {"name": TASK, "architecture": NEURAL}
    job = submit(client, dataset, task=task, resources={"devices": 3, "sharded": True})
    assert job["devices"] == 3
    assert job["waiting"] == "no worker serves queue cpu"
    path = f"/v1/jobs/{job['id']}"
    assert client.post(f"{path}/clone").json()["devices"] == 3
    forest = {"task": {"architecture": {"name": "random-forest"}}}
    (error,) = errors_of(client.post(f"{path}/clone", json=forest))
    assert error["loc"] == ["resources", "devices"]
    assert error["msg"].startswith("random-forest cannot learn on several devices")
    compiled = {"training": {"compile": "when-it-pays"}}
    (error,) = errors_of(client.post(f"{path}/clone", json=compiled))
    assert (error["loc"], error["found"]) == (["training", "compile"], "when-it-pays")
    client.post(f"{path}/cancel")
    again = client.post(f"{path}/retry").json()
    assert again["devices"] == 3
    worker.succeed(again["id"])
    longer = client.post(f"/v1/jobs/{again['id']}/extend", json={"epochs": 2}).json()
    assert longer["devices"] == 3
    assert worker.take(longer["id"]).devices == 3
    assert longer["request"]["resources"] == {"devices": 3, "sharded": True}
    assert submit(client, dataset)["devices"] == 1


def test_what_only_the_device_can_tell_is_open_until_the_first_run(
    client: TestClient, dataset: str
) -> None:
    asked = {"batch_size": "largest", "compile": "when-it-pays"}
    resolved = submit(client, dataset, training=asked)["resolved"]["training"]
    assert {name: resolved[name] for name in asked} == asked
    assert resolved["epochs"] == submit(client, dataset)["resolved"]["training"]["epochs"]
    (error,) = errors_of(
        client.post("/v1/jobs", json={"dataset": dataset, "training": {"batch_size": "huge"}})
    )
    assert error["loc"][:2] == ["training", "batch_size"]


def test_auto_takes_a_gpu_when_a_worker_has_one(
    client: TestClient, dataset: str, service: Service
) -> None:
    assert submit(client, dataset)["queue"] == "cpu"
    facts = {"host": "h", "pid": 1, "device": "cuda:0", "device_name": "test", "memory_bytes": 1}
    with service.database.transaction() as session:
        workers.beat(session, "gpu", **facts, queues=["gpu", "cpu"], slots=1, status="idle")
    try:
        assert submit(client, dataset)["queue"] == "gpu"
    finally:
        with service.database.transaction() as session:
            workers.gone(session, "gpu")


def test_a_base_brings_its_architecture(client: TestClient, dataset: str, worker: Worker) -> None:
    first = submit(client, dataset, name="base", task={"name": TASK, "architecture": NEURAL})
    checkpoint = worker.succeed(first["id"])
    for base in ("base", "base@1", first["id"], checkpoint.id):
        job = submit(client, dataset, base=base)
        exact = {"ckpt": base, "job_": f"{base}@1"}.get(base[:4], "base@1")
        assert job["base"] == exact
        assert job["base_checkpoint"] == checkpoint.id
        assert job["resolved"]["task"]["architecture"]["width"] == 8
        assert job["resolved"]["transfer"]["trainable_blocks"] == "all"


# What is refused


ARCHITECTURES = ["linear", "mlp", "random-forest"]
BAD = {
    "unknown task": ({"task": {"name": "nope"}}, ["task", "name"], TASK),
    "no task name": ({"task": {"architecture": "auto"}}, ["task", "name"], TASK),
    "unknown architecture": (
        {"task": {"name": TASK, "architecture": {"name": "mpl"}}},
        ["task", "architecture", "name"],
        "mlp",
    ),
    "wrong pair": (
        {"task": {"name": TASK, "architecture": {"name": "resnet"}}},
        ["task", "architecture", "name"],
        "random-forest",
    ),
    "misspelt hyperparameter": (
        {"task": {"name": TASK, "architecture": {"name": "mlp", "witdh": 4}}},
        ["task", "architecture", "witdh"],
        "width",
    ),
    "hyperparameter out of range": (
        {"task": {"name": TASK, "architecture": {"name": "mlp", "layers": -1}}},
        ["task", "architecture", "layers"],
        "ge",
    ),
    "misspelt training field": ({"training": {"epoch": 3}}, ["training", "epoch"], "epochs"),
    "training out of range": ({"training": {"epochs": 0}}, ["training", "epochs"], "ge"),
    "learning rate of zero": (
        {"training": {"optimizer": {"name": "adam", "learning_rate": 0}}},
        ["training", "optimizer", "learning_rate"],
        "gt",
    ),
    "unknown optimizer": (
        {"training": {"optimizer": {"name": "adm"}}},
        ["training", "optimizer", "name"],
        "adam",
    ),
    "another task's data": (
        {"task": {"name": "tabular-regression"}},
        ["task", "name"],
        TASK,
    ),
    "misspelt field": ({"traning": {}}, ["traning"], "training"),
    "bad name": ({"name": "My Model"}, ["name"], "pattern"),
    "name like an id": ({"name": "job_1"}, ["name"], None),
    "priority out of range": ({"priority": 101}, ["priority"], "le"),
    "budget of nothing": ({"budget": {"minutes": 0}}, ["budget", "minutes"], "gt"),
    "no device": ({"resources": {"devices": 0}}, ["resources", "devices"], "ge"),
    "too many devices": ({"resources": {"devices": 65}}, ["resources", "devices"], "le"),
    "a forest on two devices": (
        {
            "task": {"name": TASK, "architecture": {"name": "random-forest"}},
            "resources": {"devices": 2},
        },
        ["resources", "devices"],
        None,
    ),
    "parts on one device": ({"resources": {"sharded": True}}, ["resources", "sharded"], None),
    "webhook that is not safe": ({"webhook": "http://x.test"}, ["webhook", "url"], "https"),
    "transfer without base": ({"transfer": {}}, ["transfer"], None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_names_the_field_and_what_is_allowed(
    client: TestClient, dataset: str, name: str
) -> None:
    body, loc, allowed = BAD[name]
    (error,) = errors_of(client.post("/v1/jobs", json={"dataset": dataset, **body}))
    assert error["loc"] == loc
    assert error["msg"]
    if allowed is not None:
        assert allowed in error["allowed"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_misspelt_field_suggests_the_right_one(client: TestClient, dataset: str) -> None:
    body = {"dataset": dataset, "training": {"optimizer": {"name": "adam", "lerning_rate": 1}}}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert "did you mean 'learning_rate'" in error["msg"]


def test_every_fault_is_told_at_once(client: TestClient, dataset: str) -> None:
    body = {"dataset": dataset, "priority": "high", "training": {"epochs": -1, "sed": 1}}
    locs = [error["loc"] for error in errors_of(client.post("/v1/jobs", json=body))]
    assert sorted(locs) == [["priority"], ["training", "epochs"], ["training", "sed"]]


def test_a_body_that_is_no_json_is_told_so(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    (error,) = errors_of(client.post("/v1/jobs", content="{bad", headers=headers))
    assert error["loc"] == ["body"]
    assert "not valid JSON" in error["msg"]
    errors_of(client.post("/v1/jobs", content='"' + "a" * 200_000, headers=headers), 413)
    chunks = (b"a" * 50_000 for _ in range(5))
    errors_of(client.post("/v1/jobs", content=chunks, headers=headers), 413)


def test_what_is_not_there_is_not_found(client: TestClient, dataset: str) -> None:
    errors_of(client.post("/v1/jobs", json={"dataset": "ds_nothing"}), 404)
    for base in ("nothing", "nothing@3", "job_nothing", "ckpt_nothing", ""):
        errors_of(client.post("/v1/jobs", json={"dataset": dataset, "base": base}), 404)
    errors_of(client.get("/v1/jobs/job_nothing"), 404)


# The life of a job


def test_a_job_is_shown_through_its_life(client: TestClient, job: str, worker: Worker) -> None:
    path = f"/v1/jobs/{job}"
    held = worker.take(job)
    progress = {
        "epoch": 1,
        "epochs": 3,
        "step": 8,
        "steps": 24,
        "percent": 33.3,
        "eta_seconds": 2.5,
    }
    worker.record(held, progress=progress)
    shown = client.get(path).json()
    assert (shown["status"], shown["attempts"], shown["worker"]) == ("running", 1, "worker")
    assert shown["progress"] == progress | {"rows": None, "rows_done": None}
    assert shown["waiting"] is None
    worker.save(held)
    metrics = {"train": {"loss": 0.1}, "validation": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
    worker.finish(held, metrics=metrics)
    shown = client.get(path).json()
    assert (shown["status"], shown["model"]) == ("succeeded", "rows@1")
    assert shown["metrics"] == metrics
    assert shown["finished_at"].endswith("Z")


def test_a_failed_job_says_why(client: TestClient, job: str, worker: Worker) -> None:
    error = {"code": "diverged", "message": "The loss became infinite.", "traceback": "..."}
    worker.finish(worker.take(job), "failed", error=error)
    unseen = {"cause": None, "signal": None, "memory_bytes": None}
    assert client.get(f"/v1/jobs/{job}").json()["error"] == {**error, **unseen}


@pytest.mark.parametrize("depth", [60, 300, 900])
def test_a_body_nested_too_deeply_is_refused(client: TestClient, job: str, depth: int) -> None:
    body = '{"a":' * depth + "1" + "}" * depth
    sent: dict[str, Any] = {"content": body, "headers": {"Content-Type": "application/json"}}
    assert "no such field" in errors_of(client.post("/v1/jobs", **sent), 422)[-1]["msg"]
    (error,) = errors_of(client.post(f"/v1/jobs/{job}/clone", **sent), 422)
    assert "nested deeper than 50 levels" in error["msg"]


def test_cancelling_and_pausing_show_while_they_are_asked_for(
    client: TestClient, job: str, worker: Worker
) -> None:
    worker.take(job)
    assert client.post(f"/v1/jobs/{job}/pause").json()["status"] == "pausing"
    assert _ids(client, status="pausing") == [job]
    assert client.post(f"/v1/jobs/{job}/resume").json()["status"] == "running"
    assert client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelling"
    assert _ids(client, status="running") == []
    errors_of(client.post(f"/v1/jobs/{job}/pause"), 409)


def test_a_paused_job_waits_for_resume(client: TestClient, job: str) -> None:
    assert client.post(f"/v1/jobs/{job}/pause").json()["status"] == "paused"
    assert client.post(f"/v1/jobs/{job}/resume").json()["status"] == "queued"
    errors_of(client.post(f"/v1/jobs/{job}/resume"), 409)


def test_a_finished_job_cannot_be_changed(client: TestClient, job: str, worker: Worker) -> None:
    worker.succeed(job)
    for action in ("cancel", "stop", "pause", "resume", "retry"):
        errors_of(client.post(f"/v1/jobs/{job}/{action}"), 409)
    errors_of(client.patch(f"/v1/jobs/{job}", json={"priority": 1}), 409)


def test_stop_keeps_what_was_learned(client: TestClient, job: str, worker: Worker) -> None:
    errors_of(client.post(f"/v1/jobs/{job}/stop"), 409)
    held = worker.take(job)
    worker.save(held)
    assert client.post(f"/v1/jobs/{job}/stop").json()["status"] == "running"
    worker.finish(held)
    assert client.get(f"/v1/jobs/{job}").json()["model"] == "rows@1"


def test_retry_goes_on_from_the_last_checkpoint(
    client: TestClient, job: str, worker: Worker, service: Service
) -> None:
    held = worker.take(job)
    checkpoint = worker.save(held)
    worker.finish(held, "failed", error={"code": "internal", "message": "no"})
    answer = client.post(f"/v1/jobs/{job}/retry")
    again = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{again['id']}"
    assert again["parent"] == job
    assert again["resolved"] == client.get(f"/v1/jobs/{job}").json()["resolved"]
    assert worker.take(again["id"]).resume_checkpoint_id == checkpoint.id


def test_clone_may_choose_another_architecture(client: TestClient, job: str) -> None:
    path = f"/v1/jobs/{job}/clone"
    task = client.get(f"/v1/jobs/{job}").json()["resolved"]["task"]["name"]
    first = {"name": "mlp", "layers": 3}
    clone = client.post(path, json={"task": {"name": task, "architecture": first}}).json()
    again = f"/v1/jobs/{clone['id']}/clone"
    other = client.post(again, json={"task": {"architecture": {"name": "linear"}}}).json()
    assert other["request"]["task"]["architecture"] == {"name": "linear"}


def test_clone_changes_the_request(client: TestClient, job: str) -> None:
    path = f"/v1/jobs/{job}/clone"
    assert client.post(path).json()["request"] == client.get(f"/v1/jobs/{job}").json()["request"]
    clone = client.post(path, json={"training": {"seed": 9, "epochs": None}}).json()
    assert clone["request"]["training"] == {"seed": 9}
    assert clone["resolved"]["training"]["seed"] == 9
    assert clone["parent"] == job
    (error,) = errors_of(client.post(path, json={"training": {"seeed": 9}}))
    assert error["loc"] == ["training", "seeed"]
    assert "seed" in error["allowed"]


def test_extend_trains_on(client: TestClient, job: str, worker: Worker) -> None:
    errors_of(client.post(f"/v1/jobs/{job}/extend", json={"epochs": 2}), 409)
    checkpoint = worker.succeed(job)
    longer = client.post(f"/v1/jobs/{job}/extend", json={"epochs": 2}).json()
    assert longer["resolved"]["training"]["epochs"] == 5
    assert longer["request"]["training"]["epochs"] == 5
    assert worker.take(longer["id"]).resume_checkpoint_id == checkpoint.id
    for epochs in (0, "many", 10**9, None):
        answer = client.post(f"/v1/jobs/{job}/extend", json={"epochs": epochs})
        assert errors_of(answer)[0]["loc"] == ["epochs"]
    answer = client.post(f"/v1/jobs/{job}/extend", json={"epochs": 100_000})
    assert errors_of(answer)[0]["loc"] == ["training", "epochs"]


def test_a_job_can_be_renamed_and_moved(client: TestClient, job: str) -> None:
    changed = client.patch(f"/v1/jobs/{job}", json={"name": "A new name", "priority": -3}).json()
    assert (changed["name"], changed["priority"]) == ("A new name", -3)
    errors_of(client.patch(f"/v1/jobs/{job}", json={"priority": 1_000}))
    errors_of(client.patch(f"/v1/jobs/{job}", json={"status": "succeeded"}))


def test_only_an_ended_job_can_be_deleted(client: TestClient, job: str) -> None:
    errors_of(client.delete(f"/v1/jobs/{job}"), 409)
    client.post(f"/v1/jobs/{job}/cancel")
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    errors_of(client.get(f"/v1/jobs/{job}"), 404)


def test_jobs_can_be_listed_by_status_task_and_data_set(
    client: TestClient, dataset: str, upload: Any
) -> None:
    first, second = submit(client, dataset)["id"], submit(client, dataset)["id"]
    third = submit(client, upload(ROWS).json()["id"])["id"]
    client.post(f"/v1/jobs/{first}/cancel")
    assert _ids(client) == [third, second, first]
    assert _ids(client, status="cancelled") == [first]
    assert _ids(client, dataset=dataset, status="queued") == [second]
    assert _ids(client, task="nothing") == []
    assert _ids(client, limit=1) == [third]
    assert errors_of(client.get("/v1/jobs", params={"status": "done"}))[0]["loc"] == [
        "query",
        "status",
    ]
    for limit in (0, 101, "x"):
        errors_of(client.get("/v1/jobs", params={"limit": limit}))


def test_curves_come_by_name_and_thinned(client: TestClient, job: str, worker: Worker) -> None:
    held = worker.take(job)
    points = [(step, step // 10, {"train/loss": 1 / step}) for step in range(1, 101)]
    worker.record(held, points=[*points, (100, 10, {"validation/accuracy": 0.5})])
    path = f"/v1/jobs/{job}/metrics"
    curves = client.get(path).json()["curves"]
    assert curves["validation/accuracy"] == {"steps": [100], "epochs": [10], "values": [0.5]}
    assert curves["train/loss"]["values"] == [1 / step for step in range(1, 101)]
    thin = client.get(path, params={"names": "train/loss,nothing", "points": 10}).json()["curves"]
    assert list(thin) == ["train/loss"]
    assert len(thin["train/loss"]["steps"]) <= 10
    assert (thin["train/loss"]["steps"][0], thin["train/loss"]["steps"][-1]) == (1, 100)


def _ids(client: TestClient, **params: Any) -> list[str]:
    return [row["id"] for row in client.get("/v1/jobs", params=params).json()["data"]]
