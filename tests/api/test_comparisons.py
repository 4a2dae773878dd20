"""Comparisons over HTTP: what a base is worth, share by share."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.service import Service, Worker, errors_of
from worker.sweeps import tend

MLP = {"name": "tabular-classification", "architecture": {"name": "mlp", "width": 8}}


@pytest.fixture
def base(client: TestClient, dataset: str, worker: Worker) -> str:
    """A model to start from."""
    asked = {"dataset": dataset, "name": "early", "task": MLP}
    job = client.post("/v1/jobs", json=asked).json()["id"]
    worker.succeed(job)
    return "early"


def compared(client: TestClient, dataset: str, **asked: Any) -> dict[str, Any]:
    answer = client.post("/v1/sweeps", json={"dataset": dataset, **asked})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def shown(client: TestClient, sweep: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/sweeps/{sweep['id']}").json()
    return found


def end(
    worker: Worker, trial: dict[str, Any], validation: float, test: float, *, early: bool = False
) -> None:
    job = worker.take(trial["job"])
    epochs = job.spec["training"]["epochs"]
    worker.record(job, progress={"epoch": epochs - early, "epochs": epochs})
    worker.save(job)
    metrics = {"validation": {"accuracy": validation}, "test": {"accuracy": test}}
    worker.finish(job, metrics=metrics)


def test_a_comparison_trains_each_share_with_the_base_and_from_scratch(
    service: Service, client: TestClient, dataset: str, base: str
) -> None:
    compare = {"shares": [0.5, 1.0], "seeds": 2}
    training = {"seed": 5, "epochs": 2}
    sweep = compared(client, dataset, base=base, compare=compare, training=training, parallel=9)
    assert sweep["space"] == {
        "transfer.from_scratch": {"type": "choice", "choices": [False, True]},
        "training.share": {"type": "choice", "choices": [0.5, 1.0]},
        "training.seed": {"type": "choice", "choices": [5, 6]},
    }
    assert (sweep["sampler"]["name"], sweep["progress"]["trials"]) == ("grid", 8)
    assert [row["seeds"] for row in sweep["gains"]["rows"]] == [0, 0]
    tend(service.database, sweep["id"])
    jobs = [client.get(f"/v1/jobs/{t['job']}").json() for t in shown(client, sweep)["trials"]]
    seen = {
        (
            job["resolved"]["transfer"]["from_scratch"],
            job["resolved"]["training"]["share"],
            job["resolved"]["training"]["seed"],
        )
        for job in jobs
    }
    assert len(seen) == 8
    assert {job["resolved"]["task"]["architecture"]["width"] for job in jobs} == {8}
    (listed,) = client.get("/v1/sweeps").json()["data"]
    assert listed["gains"] is None
    client.post(f"/v1/sweeps/{sweep['id']}/cancel")


def test_the_gain_is_a_mean_over_seeds_with_its_error(
    service: Service, client: TestClient, dataset: str, base: str, worker: Worker
) -> None:
    compare = {"shares": [0.1, 1.0], "seeds": 2}
    sweep = compared(client, dataset, base=base, compare=compare, parallel=8)
    tend(service.database, sweep["id"])
    scores = {
        # share, from scratch: by seed
        (0.1, False): (0.75, 0.875),
        (0.1, True): (0.5, 0.375),
        (1.0, False): (0.875, 0.875),
        (1.0, True): (0.875, 0.75),
    }
    for trial in shown(client, sweep)["trials"]:
        chosen = trial["parameters"]
        side = scores[chosen["training.share"], chosen["transfer.from_scratch"]]
        end(worker, trial, 0.0, side[chosen["training.seed"]])
    gains = shown(client, sweep)["gains"]
    few, every = gains["rows"]
    assert few == {
        "share": 0.1,
        "with_transfer": 0.8125,
        "from_scratch": 0.4375,
        "gain": 0.375,
        "gain_error": 0.125,
        "seeds": 2,
    }
    assert (every["gain"], every["gain_error"]) == (0.0625, 0.0625)
    assert (gains["metric"], gains["split"]) == ("accuracy", "test")
    assert gains["as_good_from"] == 0.1, "0.8125 is what all of the data makes from scratch"
    tend(service.database, sweep["id"])
    assert shown(client, sweep)["gains"] == gains


def test_what_is_searched_beside_is_chosen_by_the_validation_split_for_either_side(
    service: Service, client: TestClient, dataset: str, base: str, worker: Worker
) -> None:
    rate = "training.optimizer.learning_rate"
    space = {rate: {"type": "choice", "choices": [0.001, 0.01]}}
    compare = {"shares": [1.0], "seeds": 1}
    sweep = compared(client, dataset, base=base, compare=compare, space=space, parallel=9)
    assert sweep["progress"]["trials"] == 4
    tend(service.database, sweep["id"])
    scores = {
        # from scratch, rate: validation, test
        (False, 0.001): (0.9, 0.6),
        (False, 0.01): (0.8, 0.9),
        (True, 0.001): (0.1, 1.0),
        (True, 0.01): (0.2, 0.5),
    }
    for trial in shown(client, sweep)["trials"]:
        chosen = trial["parameters"]
        end(worker, trial, *scores[chosen["transfer.from_scratch"], chosen[rate]])
    (row,) = shown(client, sweep)["gains"]["rows"]
    assert (row["with_transfer"], row["from_scratch"]) == (0.6, 0.5)
    assert (row["gain_error"], row["seeds"]) == (None, 1)


def test_a_trial_that_was_stopped_does_not_count(
    service: Service, client: TestClient, dataset: str, base: str, worker: Worker
) -> None:
    compare = {"shares": [1.0], "seeds": 2}
    sweep = compared(client, dataset, base=base, compare=compare, parallel=4)
    tend(service.database, sweep["id"])
    for trial in shown(client, sweep)["trials"]:
        chosen = trial["parameters"]
        early = chosen["transfer.from_scratch"] and chosen["training.seed"] == 1
        end(worker, trial, 0.5, 0.25 if early else 0.75, early=early)
    (row,) = shown(client, sweep)["gains"]["rows"]
    assert (row["gain"], row["seeds"]) == (0.0, 1)


@pytest.mark.parametrize(
    ("asked", "loc", "message"),
    [
        ({"base": None}, ["compare"], "nothing to take over"),
        ({"sampler": {"name": "random"}}, ["sampler"], "every combination"),
        ({"pruner": {"name": "median"}}, ["pruner"], "to its end"),
        ({"trials": 5}, ["trials"], "too few for"),
        ({"compare": {"shares": [0.0]}}, ["compare", "shares", 0], "greater than 0"),
        ({"compare": {"seeds": 0}}, ["compare", "seeds"], "greater than or equal to 1"),
        (
            {"space": {"training.share": {"type": "choice", "choices": [0.1]}}},
            ["space", "training.share"],
            "is varied by `compare`",
        ),
    ],
)
def test_a_comparison_that_would_tell_nothing_is_refused(
    client: TestClient, dataset: str, base: str, asked: Any, loc: list[Any], message: str
) -> None:
    body = {"dataset": dataset, "base": base, "compare": {}, **asked}
    errors = errors_of(client.post("/v1/sweeps", json=body))
    assert [error["loc"] for error in errors] == [loc]
    assert message in errors[0]["msg"]


def test_a_job_without_a_base_cannot_leave_it_aside(client: TestClient, dataset: str) -> None:
    body = {"dataset": dataset, "transfer": {"from_scratch": True}}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert error["loc"] == ["transfer"]


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_a_share_is_a_part(client: TestClient, dataset: str, share: float) -> None:
    body = {"dataset": dataset, "training": {"share": share}}
    (error,) = errors_of(client.post("/v1/jobs", json=body))
    assert error["loc"] == ["training", "share"]
