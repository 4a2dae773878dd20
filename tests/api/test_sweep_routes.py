"""Sweeps over HTTP: what may be searched, what is refused, and how one ends."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import sweeps
from tests.api.service import TASK, Service, Worker, errors_of
from worker.sweeps import tend

RATE = "training.optimizer.learning_rate"
SPACE: dict[str, Any] = {
    RATE: {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "training.batch_size": {"type": "int", "low": 4, "high": 12, "step": 4},
    "task.architecture.name": {"type": "choice", "choices": ["mlp", "random-forest"]},
}


def submit(client: TestClient, dataset: str, **more: Any) -> dict[str, Any]:
    asked = {"dataset": dataset, "space": SPACE, **more}
    answer = client.post("/v1/sweeps", json=asked)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/v1/sweeps/{answer.json()['id']}"
    found: dict[str, Any] = answer.json()
    return found


def refused(client: TestClient, dataset: str, space: Any, **more: Any) -> list[dict[str, Any]]:
    return errors_of(client.post("/v1/sweeps", json={"dataset": dataset, "space": space, **more}))


def test_a_sweep_shows_what_it_searches_and_what_for(client: TestClient, dataset: str) -> None:
    sweep = submit(client, dataset, trials=7, name="best-rows", priority=3)
    assert (sweep["name"], sweep["status"], sweep["task"]) == ("best-rows", "running", TASK)
    assert (sweep["metric"], sweep["maximise"]) == ("accuracy", True)
    assert sweep["progress"] == {"made": 0, "ended": 0, "trials": 7, "percent": 0.0}
    assert (sweep["trials"], sweep["best"], sweep["priority"]) == ([], None, 3)
    assert sweep["request"]["name"] == "best-rows"
    assert "space" not in sweep["request"]
    (listed,) = client.get("/v1/sweeps").json()["data"]
    assert listed == {**sweep, "trials": None}
    assert client.get(f"/v1/sweeps/{sweep['id']}").json() == sweep


def test_without_a_space_it_searches_architectures_and_rates_from_the_default_on(
    service: Service, client: TestClient, dataset: str
) -> None:
    asked = {"dataset": dataset, "budget": {"minutes": 5}, "parallel": 2}
    made = client.post("/v1/sweeps", json=asked)
    assert made.status_code == 202, made.text
    sweep = made.json()
    assert set(sweep["space"]) == {RATE, "task.architecture"}
    first, *others = sweep["space"]["task.architecture"]["choices"]
    assert first == "auto"
    names = {each["name"] for each in others}
    default = client.post("/v1/jobs", json={"dataset": dataset}).json()["resolved"]
    assert names == {"linear", "mlp", "random-forest"} - {default["task"]["architecture"]["name"]}
    assert sweep["pruner"]["name"] == "median"
    assert sweep["progress"]["trials"] == 1000
    tend(service.database, sweep["id"])
    trial = client.get(f"/v1/sweeps/{sweep['id']}").json()["trials"][0]
    assert trial["parameters"] == {RATE: 1.0, "task.architecture": "auto"}
    assert client.get(f"/v1/jobs/{trial['job']}").json()["resolved"] == default
    client.post(f"/v1/sweeps/{sweep['id']}/cancel")


def test_an_architecture_that_is_asked_for_is_not_searched(
    client: TestClient, dataset: str
) -> None:
    task = {"name": TASK, "architecture": {"name": "mlp"}}
    asked = {"dataset": dataset, "task": task}
    sweep = client.post("/v1/sweeps", json=asked).json()
    assert list(sweep["space"]) == [RATE]
    assert sweep["progress"]["trials"] == 20
    client.post(f"/v1/sweeps/{sweep['id']}/cancel")
    (error,) = errors_of(client.post("/v1/sweeps", json={**asked, "sampler": {"name": "grid"}}))
    assert error["loc"] == ["space"]


def test_trials_are_jobs_and_the_best_becomes_the_model(
    service: Service, client: TestClient, dataset: str, worker: Worker
) -> None:
    sweep = submit(client, dataset, trials=3, parallel=3, name="winner")
    tend(service.database, sweep["id"])
    shown = client.get(f"/v1/sweeps/{sweep['id']}").json()
    assert [trial["number"] for trial in shown["trials"]] == [0, 1, 2]
    assert {trial["status"] for trial in shown["trials"]} == {"queued"}
    first = shown["trials"][0]
    job = client.get(f"/v1/jobs/{first['job']}").json()
    assert job["name"] == "winner 0"
    assert job["trial"] == {
        "sweep": sweep["id"],
        "number": 0,
        "parameters": first["parameters"],
        "pruned": False,
    }
    chosen = job["resolved"]["training"]
    assert chosen["batch_size"] == first["parameters"]["training.batch_size"] in (4, 8, 12)
    architecture = job["resolved"]["task"]["architecture"]["name"]
    assert architecture == first["parameters"]["task.architecture.name"]
    worker.succeed(shown["trials"][1]["job"])
    client.post(f"/v1/jobs/{shown['trials'][2]['job']}/cancel")
    assert client.get("/v1/models").json()["data"] == []
    half = client.get(f"/v1/sweeps/{sweep['id']}").json()
    assert (half["best"]["trial"], half["best"]["value"]) == (1, 0.5)
    assert half["progress"]["ended"] == 2
    worker.succeed(first["job"])
    tend(service.database, sweep["id"])
    ended = client.get(f"/v1/sweeps/{sweep['id']}").json()
    assert (ended["status"], ended["model"]) == ("succeeded", "winner@1")
    assert [trial["status"] for trial in ended["trials"]] == ["succeeded", "succeeded", "cancelled"]
    assert ended["best"]["parameters"] == first["parameters"]
    (model,) = client.get("/v1/models").json()["data"]
    assert model["newest"]["ref"] == "winner@1"
    assert client.get(f"/v1/jobs/{first['job']}").json()["model"] == "winner@1"
    errors_of(client.post(f"/v1/sweeps/{sweep['id']}/cancel"), 409)
    assert client.delete(f"/v1/sweeps/{sweep['id']}").status_code == 204
    errors_of(client.get(f"/v1/jobs/{first['job']}"), 404)
    assert [left["name"] for left in client.get("/v1/models").json()["data"]] == ["winner"]


@pytest.mark.parametrize(
    ("path", "parameter", "message"),
    [
        ("training.epoch", {"type": "int", "low": 1, "high": 3}, "no such field"),
        ("training.batch_size", {"type": "int", "low": 0, "high": 8}, "greater than or equal to 1"),
        ("training.batch_size", {"type": "float", "low": 1, "high": 8}, "valid integer"),
        ("training.batch_size", {"type": "choice", "choices": [4, "huge"]}, "valid integer"),
        (
            "task.architecture.name",
            {"type": "choice", "choices": ["mlp", "lsmt"]},
            "no such option",
        ),
        ("task.architecture.witdh", {"type": "int", "low": 1, "high": 3}, "no such field"),
        (RATE, {"type": "float", "low": 1, "high": 1e9}, "less than or equal"),
        (
            "transfer.backbone_learning_rate",
            {"type": "float", "low": 0.1, "high": 1},
            "nothing to take over",
        ),
        ("priority", {"type": "int", "low": 1, "high": 3}, "must be a field's path"),
        ("resources.devices", {"type": "int", "low": 1, "high": 3}, "must be a field's path"),
        ("training.epochs.x", {"type": "int", "low": 1, "high": 3}, "valid integer"),
    ],
)
def test_a_space_that_makes_no_valid_job_is_refused_by_path(
    client: TestClient, dataset: str, path: str, parameter: Any, message: str
) -> None:
    errors = refused(client, dataset, {path: parameter, "training.seed": SEED})
    assert {tuple(error["loc"]) for error in errors} == {("space", path)}
    assert any(message in error["msg"] for error in errors), errors
    assert client.get("/v1/sweeps").json()["data"] == []


SEED = {"type": "int", "low": 0, "high": 9}


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"type": "int", "low": 3, "high": 3}, "`low` must be less"),
        ({"type": "float", "low": 0, "high": 3, "log": True}, "greater than 0"),
        ({"type": "float", "low": 1, "high": 3, "log": True, "step": 1}, "do not go together"),
        ({"type": "choice", "choices": []}, "at least 1 item"),
        ({"type": "choice", "choices": [1, 1]}, "twice"),
        ({"type": "normal", "low": 1}, "no such option"),
        ({"type": "int", "low": 1, "hihg": 2}, "no such field"),
    ],
)
def test_a_range_that_is_none_is_refused(
    client: TestClient, dataset: str, parameter: Any, message: str
) -> None:
    errors = refused(client, dataset, {"training.batch_size": parameter})
    error = next(each for each in errors if each["loc"][-1] != "high")
    assert error["loc"][:2] == ["space", "training.batch_size"]
    assert error["loc"][2:] in ([], ["choices"], ["type"], ["hihg"])
    assert message in error["msg"]


def test_a_field_that_only_some_choices_have_is_refused_with_the_choice(
    client: TestClient, dataset: str
) -> None:
    width = {"type": "int", "low": 4, "high": 8}
    names = SPACE["task.architecture.name"]
    space = {"task.architecture.name": names, "task.architecture.width": width}
    (error,) = refused(client, dataset, space)
    assert error["loc"] == ["space", "task.architecture.width"]
    assert "with task.architecture.name = 'random-forest'" in error["msg"]


def test_whole_options_can_be_chosen_among(
    service: Service, client: TestClient, dataset: str
) -> None:
    options = [{"name": "mlp", "width": 8}, {"name": "random-forest", "trees": 10}]
    space = {"task.architecture": {"type": "choice", "choices": options}}
    sweep = submit(client, dataset, space=space, sampler={"name": "grid"}, parallel=5)
    assert sweep["progress"]["trials"] == 2
    tend(service.database, sweep["id"])
    trials = client.get(f"/v1/sweeps/{sweep['id']}").json()["trials"]
    chosen = [trial["parameters"]["task.architecture"] for trial in trials]
    assert sorted(chosen, key=str) == sorted(options, key=str)
    client.post(f"/v1/sweeps/{sweep['id']}/cancel")


def test_a_grid_needs_steps_and_a_path_stands_alone(client: TestClient, dataset: str) -> None:
    (error,) = refused(client, dataset, {RATE: SPACE[RATE]}, sampler={"name": "grid"})
    assert error["loc"] == ["space", RATE, "step"]
    whole = {"type": "choice", "choices": [{"name": "mlp"}]}
    width = {"type": "int", "low": 4, "high": 8}
    space = {"task.architecture": whole, "task.architecture.width": width}
    (error,) = refused(client, dataset, space)
    assert error["loc"] == ["space", "task.architecture.width"]


def test_a_sweep_is_cancelled_at_once_with_what_waits(
    service: Service, client: TestClient, dataset: str
) -> None:
    sweep = submit(client, dataset, parallel=2)
    path = f"/v1/sweeps/{sweep['id']}"
    errors_of(client.delete(path), 409)
    tend(service.database, sweep["id"])
    cancelled = client.post(f"{path}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert {trial["status"] for trial in cancelled["trials"]} == {"cancelled"}
    errors_of(client.post(f"{path}/stop"), 409)
    with service.database.transaction(read_only=True) as session:
        assert sweep["id"] not in sweeps.due(session)


def test_what_was_wrong_with_a_job_is_wrong_with_a_sweep(client: TestClient, dataset: str) -> None:
    errors_of(client.post("/v1/sweeps", json={"dataset": "ds_none", "space": SPACE}), 404)
    errors = refused(client, dataset, SPACE, training={"epoch": 3})
    assert [error["loc"] for error in errors] == [["training", "epoch"]]
    errors = refused(client, dataset, SPACE, pruner={"name": "axe"})
    assert errors[0]["loc"] == ["pruner", "name"]
    assert errors[0]["allowed"] == ["median", "none", "successive-halving"]
