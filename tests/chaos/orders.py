"""What is asked of the service: a request for every kind of job, and how each ends undisturbed."""

import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx2

from cli.client import ENDED
from tasks.catalog import architectures, family_of, tasks
from tests.api.service import zipped
from tests.chaos.clients import Client
from tests.chaos.trees import POISON
from tests.published import MAKERS, passing_folder
from tests.toys import tasks_with_toys, toy

EXAMPLES = 200
USUAL_EPOCHS = 35
EPOCHS = {
    "linear": 150,
    "mlp": 150,
    "bag-of-embeddings": 120,
    "resnet": 5,
    "transformer": 18,
    "pretrained": 12,
}
"""Trainings of seconds: long enough that each is hurt, short enough that many are done."""
PATIENCE_SECONDS = 600.0
"""For the references, on a machine that has other things to do."""
DIVERGING = "diverging"


class Order(NamedTuple):
    """A request that makes a job."""

    name: str
    path: str
    body: dict[str, Any]


class Outcome(NamedTuple):
    """All of how a job ended that must not depend on what happened to it meanwhile."""

    status: str
    code: str | None
    """Of its error, if it failed."""
    weights: str | None
    """The SHA-256 of its model."""
    curves: dict[str, Any]
    metrics: dict[str, Any]
    result: dict[str, Any] | None


class Menu(NamedTuple):
    """The orders, and how each ended when it was left alone."""

    orders: list[Order]
    references: dict[str, Outcome]
    jobs: set[str]
    """The references' own."""
    datasets: set[str]

    @property
    def poison(self) -> Order:
        return self.orders[-1]


def prepare(client: Client, folder: Path, draw: Random, kinds: int) -> Menu:
    """At most so many trainings of all tasks and architectures, what builds on them, and two that fail."""
    datasets = {task: upload(client, task, folder, f"data {task}") for task in tasks_with_toys()}
    trainings = _trainings(datasets, _checkpoints(client), draw)[:kinds]
    table = "tabular-classification"
    poison = _training(table, {"name": POISON}, datasets[table])._replace(name=POISON)
    first = [*trainings, _diverging(datasets["tabular-regression"])]
    jobs = _done(client, first)
    second = _building_on(trainings, jobs)
    jobs |= _done(client, second)
    references = {name: outcome_of(client, job) for name, job in jobs.items()}
    failed = {name for name, outcome in references.items() if outcome.status == "failed"}
    assert failed == {DIVERGING}, references
    return Menu([*first, *second, poison], references, set(jobs.values()), set(datasets.values()))


def submit(client: Client, order: Order, key: str, **more: Any) -> str:
    """The id of the job that an order makes, once however often it is sent with this key."""
    return _made(client.make(order.path, _key(key), json=order.body | more))


def upload(client: Client, task: str, folder: Path, key: str, examples: int = EXAMPLES) -> str:
    """The id of a data set that is made once, as above."""
    files = {
        part: (upload.name, upload.path.read_bytes())
        for part, upload in toy(task, folder, examples).items()
    }
    data = {"task": task, "name": task}
    return _made(client.make("/v1/datasets", _key(key), data=data, files=files))


def wait(client: Client, jobs: Iterable[str], seconds: float) -> list[str]:
    """Have jobs end, those that are paused resumed; the ones that did not in time."""
    end = time.monotonic() + seconds
    return [job_id for job_id in jobs if not _ends(client, job_id, end)]


def _ends(client: Client, job_id: str, end: float) -> bool:
    while (status := client.read(f"/v1/jobs/{job_id}")["status"]) not in ENDED:
        if time.monotonic() > end:
            return False
        if status == "paused":
            client.call("POST", f"/v1/jobs/{job_id}/resume")
        time.sleep(0.3)
    return True


def outcome_of(client: Client, job_id: str) -> Outcome:
    job = client.read(f"/v1/jobs/{job_id}")
    weights = None
    if job["model"]:
        head = client.call("HEAD", f"/v1/models/{job_id}/weights").raise_for_status()
        weights = head.headers["ETag"].strip('"')
    return Outcome(
        status=job["status"],
        code=(job["error"] or {}).get("code"),
        weights=weights,
        curves=client.read(f"/v1/jobs/{job_id}/metrics")["curves"],
        metrics=job["metrics"],
        result=job["result"],
    )


def _done(client: Client, orders: list[Order]) -> dict[str, str]:
    """The jobs that orders make, by the orders' names, once they have ended."""
    jobs = {order.name: submit(client, order, f"reference {order.name}") for order in orders}
    assert not wait(client, jobs.values(), PATIENCE_SECONDS)
    return jobs


def _key(text: str) -> str:
    return text.replace(" ", "-")


def _made(response: httpx2.Response) -> str:
    return str(response.raise_for_status().json()["id"])


def _checkpoints(client: Client) -> dict[str, str]:
    """Tiny published checkpoints, uploaded once, by the class of the architectures that begin with them."""
    found = {}
    for name, write in MAKERS.items():
        write(folder := passing_folder())
        content = zipped({path.name: path.read_bytes() for path in folder.iterdir()})
        files = {"file": ("tiny.zip", content)}
        found[name] = _made(client.make("/v1/pretrained", f"checkpoint-{name}", files=files))
    return found


def _trainings(datasets: dict[str, str], checkpoints: dict[str, str], draw: Random) -> list[Order]:
    """Every architecture of every task, in rounds with one of each task."""
    offered = {}
    for task, dataset in datasets.items():
        kinds = sorted(architectures(family_of(tasks()[task])).items())
        draw.shuffle(kinds)
        asked = [
            {"name": name, **({"checkpoint": found} if found else {})}
            for name, kind in kinds
            for found in (checkpoints.get(kind.__name__),)
        ]
        offered[task] = [_training(task, architecture, dataset) for architecture in asked]
    rounds = range(max(map(len, offered.values())))
    return [orders[n] for n in rounds for orders in offered.values() if n < len(orders)]


def _training(task: str, architecture: dict[str, Any], dataset: str) -> Order:
    name = architecture["name"]
    body = {
        "dataset": dataset,
        "name": f"{task}.{name}",
        "task": {"name": task, "architecture": dict(architecture)},
        "training": {
            "epochs": EPOCHS.get(name, USUAL_EPOCHS),
            "batch_size": 16,
            "seed": 5,
        },
    }
    return Order(f"{task} {name}", "/v1/jobs", body)


def _diverging(dataset: str) -> Order:
    """One that fails for a reason of its own, the same each time."""
    order = _training("tabular-regression", {"name": "mlp"}, dataset)
    order.body["training"]["optimizer"] = {"name": "sgd", "learning_rate": 100.0}
    order.body["task"]["architecture"] |= {"norm": "none"}
    return order._replace(name=DIVERGING)


def _building_on(trainings: list[Order], jobs: dict[str, str]) -> list[Order]:
    """A transfer, an extension, an evaluation and an export of jobs that were done."""
    taught = next(order for order in trainings if _has_backbone(order))
    body = {key: value for key, value in taught.body.items() if key != "task"}
    head = {"name": "transfer", "base": jobs[taught.name], "transfer": {"trainable_blocks": 0}}
    other = trainings[-1]
    split = {"dataset": other.body["dataset"], "split": "validation"}
    return [
        Order("transfer", "/v1/jobs", body | head),
        Order("extension", f"/v1/jobs/{jobs[other.name]}/extend", {"epochs": 10}),
        Order("evaluation", f"/v1/models/{jobs[other.name]}/evaluate", split),
        Order("export", f"/v1/models/{jobs[other.name]}/exports", {"format": "safetensors"}),
    ]


def _has_backbone(training: Order) -> bool:
    return architectures()[training.body["task"]["architecture"]["name"]].has_backbone
