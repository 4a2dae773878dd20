"""Every process is replaced while clients work: each repeats a failed request once, and none gives up."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest

from cli.client import ready
from tests.chaos.clients import Client
from tests.conftest import fresh_postgres
from tests.processes import Part, Service, production
from tests.toys import toy

TASK = "tabular-classification"
INPUTS = [{"length": 3.0, "colour": "red", "picked": "2024-05-01"}, {"length": 6.2}]
LEAVES_WITHIN = {"api": 20.0, "worker": 30.0, "reconciler": 10.0}
"""Seconds after SIGTERM: what requests under way, or a last checkpoint, may take."""
BACK_WITHIN = 120.0


@pytest.fixture
def service(postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    short = {"THREADS": "1", "HEARTBEAT_SECONDS": "1", "CHECKPOINT_SECONDS": "1"}
    with (
        fresh_postgres(postgres_url) as url,
        production(
            tmp_path,
            url,
            redis_url,
            apis=["api-1", "api-2"],
            workers={"worker-1": "cpu", "worker-2": "cpu"},
            extra={f"MODELYARD_{name}": value for name, value in short.items()},
        ) as running,
    ):
        yield running


class Load:
    """Clients of every kind, who begin with a data set, a model, and a job that nobody takes."""

    def __init__(self, service: Service, client: Client, folder: Path) -> None:
        self._service, self._client, self._enough = service, client, Event()
        self._table = toy(TASK, folder)["file"].path.read_bytes()
        self.datasets = [self._upload("first")]
        self.jobs = [self._submit("first")]
        self.weights = self._weights(self.jobs[0])
        self.labels = self._predict(0)
        self.waiting = self._submit("waiting", resources={"queue": "gpu"})
        self.heard: list[int] = []
        """The numbers of the waiting job's events."""

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have all of them work; raises what one could not get done."""
        works = (self._read, self._predict, self._train, self._send)
        with ThreadPoolExecutor() as pool:
            lives = [pool.submit(self._repeat, work) for work in works]
            lives.append(pool.submit(self._listen))
            try:
                yield
            finally:
                self._client.call("POST", f"/v1/jobs/{self.waiting}/cancel")
                self._enough.set()
        for life in lives:
            life.result()

    def go_on(self) -> None:
        """Two more events for whoever listens."""
        for wish in ("pause", "resume"):
            self._client.call("POST", f"/v1/jobs/{self.waiting}/{wish}").raise_for_status()

    def settled(self) -> set[str]:
        """The SHA-256 of the weights of all jobs, once they have ended."""
        return {self._weights(job_id) for job_id in self.jobs}

    def _repeat(self, work: Callable[[int], object]) -> None:
        for number in count(1):
            if self._enough.wait(0.15):
                return
            work(number)

    def _read(self, number: int) -> None:
        for path in ("", f"/{self.waiting}", f"/{self.jobs[0]}/metrics", f"/{self.jobs[0]}/logs"):
            self._client.read(f"/v1/jobs{path}")

    def _predict(self, number: int) -> list[str]:
        asked = {"inputs": INPUTS}
        answer = self._client.call("POST", "/v1/models/flowers/predict", json=asked)
        labels = [found["label"] for found in answer.raise_for_status().json()["predictions"]]
        assert number == 0 or labels == self.labels
        return labels

    def _train(self, number: int) -> None:
        if number % 20 == 0:
            self.jobs.append(self._submit(f"job-{number}"))

    def _send(self, number: int) -> None:
        if number % 10 == 0:
            self.datasets.append(self._upload(f"data-{number}"))

    def _listen(self) -> None:
        """Follow the waiting job's events from one API to the next, until there are no more."""
        path, key = f"/v1/jobs/{self.waiting}/events", f"Bearer {self._service.key}"
        for url in cycle(self._service.urls):
            last = str(self.heard[-1] if self.heard else 0)
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last, "Authorization": key}
            with (
                suppress(httpx2.TransportError),
                httpx2.stream("GET", url + path, headers=headers, timeout=30) as response,
            ):
                for line in response.iter_lines():
                    if line.startswith("id: "):
                        self.heard.append(int(line.removeprefix("id: ")))
                    elif line == "event: end":
                        return
            time.sleep(0.1)

    def _upload(self, key: str) -> str:
        return self._made(
            "/v1/datasets",
            key,
            data={"task": TASK, "name": key},
            files={"file": ("flowers.csv", self._table)},
        )

    def _submit(self, key: str, **more: Any) -> str:
        training = {"epochs": 40, "seed": 1}
        body = {"dataset": self.datasets[0], "name": "flowers", "training": training}
        return self._made("/v1/jobs", key, json=body | more)

    def _made(self, path: str, key: str, **request: Any) -> str:
        made = self._client.make(path, f"{path}/{key}", **request).raise_for_status().json()
        return str(made["id"])

    def _weights(self, job_id: str) -> str:
        self._service.client.wait(job_id)
        found = self._client.call("HEAD", f"/v1/models/{job_id}/weights").raise_for_status()
        return found.headers["ETag"]


def replace(service: Service, part: Part) -> None:
    """Tell a process to stop, and go on once it has ended and another one is in its place."""
    began = time.monotonic()
    part.send(signal.SIGTERM)
    assert part.wait() in (0, -signal.SIGTERM), part.log.read_text()[-3_000:]
    kind = part.name.partition("-")[0]
    assert time.monotonic() - began <= LEAVES_WITHIN[kind], f"{part.name} took its time to leave"
    part.start()
    if kind == "api":
        assert ready(service.urls[int(part.name[-1]) - 1], lambda: part.alive, BACK_WITHIN)
    elif kind == "worker":
        until = time.monotonic() + BACK_WITHIN
        while part.pid not in [
            row["pid"] for row in service.client.call("GET", "/v1/workers")["data"]
        ]:
            assert part.alive, part.log.read_text()[-3_000:]
            assert time.monotonic() < until, f"{part.name} does not come back"
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rolling_restart_under_load_fails_no_request_that_is_repeated_once(
    service: Service, tmp_path: Path
) -> None:
    with closing(Client(service.urls, service.key, tries=2, timeout=120)) as client:
        load = Load(service, client, tmp_path)
        with load.on():
            for part in service.parts.values():
                replace(service, part)
                load.go_on()
        assert load.settled() == {load.weights}
        made = {job["id"] for job in client.read("/v1/jobs", limit=100)["data"]}
        assert made == {*load.jobs, load.waiting}
        stored = {dataset["id"] for dataset in client.read("/v1/datasets", limit=100)["data"]}
        assert stored == set(load.datasets)
        events = 1 + 2 * len(service.parts) + 1
        assert load.heard == list(range(1, events + 1))
    # It would prove nothing if no request had met a process on its way out.
    assert client.repeated
