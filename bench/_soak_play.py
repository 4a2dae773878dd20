"""One play of the soak on one database: its clients, who changes the models meanwhile, and what went wrong."""

import asyncio
import base64
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx2

from bench._exported import export, load
from bench._service import web_process, worker_process
from bench._soak_meanings import SHOWS_SECONDS, Meanings
from cli.client import Client, Refused
from cli.digits import digits, image_folder, png
from store.session import Database, connect

QUEUE = 16
"""Requests that may wait for a model: few, so that a crowd is told to come again."""
CROWD, CLIENTS, INPUTS, VERSIONS = 3 * QUEUE, 4, 24, 2
PAUSE_SECONDS = 0.1
"""The longest between two that misuse the service, or that leave."""
RESIDENT_BYTES = 40_000
"""Memory for models: too little for all of them, so that they are let go and loaded again."""
TOLERANCE = 1e-4
"""By which scores may differ from those of the input alone: a larger batch is computed in another order."""
GROWTH, GROWTH_BYTES = 0.05, 32 * 2**20
"""Memory that a process may have more at the end than after a third of the time: the larger of both."""
TABLE, IMAGES = "tabular-classification", "image-classification"
TINY: dict[str, dict[str, Any]] = {
    TABLE: {"name": "mlp", "width": 16},
    IMAGES: {"name": "cnn", "channels": [8, 16]},
}


@dataclass
class Report:
    """What became of the requests, and of the memory."""

    answers: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Bytes after a third of the time and at the end, of each API's process."""

    def __str__(self) -> str:
        told = [f"{sum(self.answers.values())} requests", f"{len(self.violations)} violations"]
        told += [f"{one} {count}" for one, count in sorted((self.answers + self.changes).items())]
        told += [f"memory {a / 2**20:.0f} to {b / 2**20:.0f} MiB" for a, b in self.memory]
        return "\n  ".join([", ".join(told), *self.violations[:20]])

    def as_json(self) -> dict[str, Any]:
        return {"answers": self.answers, "changes": self.changes, "memory": self.memory}


def play(folder: Path, url: str, apis: int, seconds: float, seed: int) -> Report:
    """So many APIs and a worker on a new database at `url`, for so long."""
    settings = {"PREDICT_QUEUE": str(QUEUE), "RESIDENT_BYTES": str(RESIDENT_BYTES)}
    settings |= {"PREDICT_THREADS": "1", "THREADS": "1"}
    folder.mkdir()
    with ExitStack() as stack:
        started = [
            stack.enter_context(web_process(folder / f"api-{number}", url, **settings))
            for number in range(apis)
        ]
        stack.enter_context(worker_process(folder / "worker", url, **settings))
        database = connect(url)
        stack.callback(database.dispose)
        soak = _Soak([client for client, _ in started], database, folder, Random(seed))
        asyncio.run(soak.run([pid for _, pid in started], seconds))
    return soak.report


class _Model(NamedTuple):
    """A model that clients ask: its name, its task, and how each of its inputs is sent."""

    name: str
    task: str
    dataset: str
    inputs: list[Any]
    """Rows, or images as files."""
    versions: set[int]


class _Soak:
    def __init__(
        self, clients: Sequence[Client], database: Database, folder: Path, draw: Random
    ) -> None:
        self.report, self._draw, self._folder = Report(), draw, folder
        self._clients, self._database = clients, database
        self._meanings = Meanings()
        self._models: dict[str, _Model] = {}
        self._right: dict[str, asyncio.Task[list[dict[str, float]]]] = {}
        self._numbers, self._over = itertools.count(), False
        self._datasets: dict[str, str] = {}
        self._http: list[httpx2.AsyncClient] = []
        self._acts = [self._switch, self._renew, self._replace]
        """What is done to models first, so that each was done."""
        self._any_act = [*[self._switch] * 10, *[self._renew] * 2, self._replace]

    async def run(self, pids: Sequence[int], seconds: float) -> None:
        """Play so long, once there is a model of each task."""
        for task in TINY:
            self._datasets[task] = await asyncio.to_thread(self._upload, task)
            await self._add_model(task)
        self._http = [
            httpx2.AsyncClient(
                base_url=c.http.base_url,
                headers=c.http.headers,
                timeout=120,
                limits=httpx2.Limits(max_connections=2 * CROWD),
            )
            for c in self._clients
        ]
        actors = [self._ask] * CLIENTS + [self._misuse, self._leave, self._hurry, self._crowd]
        played = [asyncio.create_task(self._repeat(actor)) for actor in [*actors, self._change]]
        samples = await self._watch(pids, seconds, played)
        self._over = True
        await asyncio.gather(*played)
        for http in self._http:
            await http.aclose()
        for pid, before, after in zip(pids, samples[len(samples) // 3], samples[-1], strict=True):
            self.report.memory.append((before, after))
            if after - before > max(GROWTH * before, GROWTH_BYTES):
                self._wrong(f"process {pid} grew from {before:,} to {after:,} bytes")

    async def _repeat(self, actor: Callable[[], Awaitable[None]]) -> None:
        while not self._over:
            await actor()

    async def _watch(
        self, pids: Sequence[int], seconds: float, played: Sequence["asyncio.Task[None]"]
    ) -> list[list[int]]:
        """The memory of the processes again and again; ends at once when somebody cannot go on."""
        samples, until = [[_resident(pid) for pid in pids]], time.monotonic() + seconds
        while (self._acts or time.monotonic() < until) and not any(t.done() for t in played):
            await asyncio.sleep(min(1.0, seconds / 10))
            samples.append([_resident(pid) for pid in pids])
        # One moment says little: memory goes up and down with the batches under way.
        width = max(1, len(samples) // 6)
        return [
            [int(statistics.median(column)) for column in zip(*samples[n : n + width], strict=True)]
            for n in range(len(samples) - width + 1)
        ]

    def _wrong(self, told: str) -> None:
        self.report.violations.append(told)

    # Clients

    async def _ask(self, headers: dict[str, str] | None = None) -> None:
        """Good inputs, one or a few, by one of the names that a model has."""
        model = self._draw.choice([*self._models.values()])
        ref = self._draw.choice([model.name, f"{model.name}@live", self._version_of(model)])
        chosen = self._draw.sample(range(INPUTS), self._draw.choice([1, 1, 1, 3]))
        raw = model.task == IMAGES and len(chosen) == 1
        begun = time.monotonic()
        if raw:
            sent = {"content": model.inputs[chosen[0]]}
            response = await self._post(ref, {"Content-Type": "image/png", **(headers or {})}, sent)
        else:
            inputs = [_as_json(model.inputs[place]) for place in chosen]
            response = await self._post(ref, headers or {}, {"json": {"inputs": inputs}})
        await self._judge(model, ref, chosen, response, begun, hurried=headers is not None)

    def _version_of(self, model: _Model) -> str:
        return f"{model.name}@{self._draw.choice(sorted(model.versions))}"

    async def _hurry(self) -> None:
        """Good inputs whose answer is of use for a moment only."""
        await self._ask({"X-Request-Timeout": f"{self._draw.uniform(0.001, 0.05):.3f}"})

    async def _crowd(self) -> None:
        """More requests at once than may wait."""
        await asyncio.sleep(self._draw.uniform(0.5, 2.0))
        await asyncio.gather(*(self._ask() for _ in range(CROWD)))

    async def _misuse(self) -> None:
        """What cannot be answered: a problem document must say so, and nobody else must notice."""
        await asyncio.sleep(self._draw.uniform(0, PAUSE_SECONDS))
        model = self._draw.choice([*self._models.values()])
        ref, sent = self._draw.choice(_misuses(model))
        response = await self._post(ref, sent.pop("headers", {}), sent)
        self.report.answers[f"misuse {response.status_code}"] += 1
        told = response.headers.get("Content-Type", "")
        if response.status_code == 503 and "Retry-After" in response.headers:
            return
        if not (400 <= response.status_code < 500 and told == "application/problem+json"):
            self._wrong(f"{ref}, {str(sent)[:100]}: {response.status_code} {response.text[:200]}")

    async def _leave(self) -> None:
        """Hang up: within the request, or before the answer."""
        await asyncio.sleep(self._draw.uniform(0, PAUSE_SECONDS))
        model = self._draw.choice([*self._models.values()])
        http = self._draw.choice(self._http)
        body = json.dumps({"inputs": [_as_json(value) for value in model.inputs]}).encode()
        head = (
            f"POST /v1/models/{model.name}/predict HTTP/1.1\r\nHost: soak\r\n"
            f"Authorization: {http.headers['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        address = http.base_url.host, http.base_url.port
        _, writer = await asyncio.open_connection(*address)
        writer.write(head.encode() + body[: self._draw.choice([0, len(body) // 2, len(body)])])
        await writer.drain()
        await asyncio.sleep(self._draw.choice([0, 0.002, 0.02]))
        writer.transport.abort()
        self.report.answers["left"] += 1

    async def _post(
        self, ref: str, headers: dict[str, str], sent: dict[str, Any]
    ) -> httpx2.Response:
        http = self._draw.choice(self._http)
        return await http.post(f"/v1/models/{ref}/predict", headers=headers, **sent)

    async def _judge(
        self,
        model: _Model,
        ref: str,
        chosen: Sequence[int],
        response: httpx2.Response,
        begun: float,
        *,
        hurried: bool,
    ) -> None:
        ended, status = time.monotonic(), response.status_code
        meant = self._meanings.of(ref, begun, ended)
        self.report.answers[str(status)] += 1
        if status == 200:
            await self._judge_answer(ref, chosen, response.json(), meant)
        elif status == 404:
            if None not in meant:
                self._wrong(f"{ref}: 404, though it means version {meant}")
        elif status == 503:
            if "Retry-After" not in response.headers:
                self._wrong(f"{ref}: 503 without Retry-After: {response.text[:200]}")
        elif not (status == 504 and hurried):
            self._wrong(f"{ref}: {status} {response.text[:300]}")

    async def _judge_answer(
        self, ref: str, chosen: Sequence[int], answer: Any, meant: set[int | None]
    ) -> None:
        name, _, version = answer["model"].partition("@")
        if name != ref.partition("@")[0] or int(version) not in meant:
            self._wrong(f"{ref}: {answer['model']} answered, though it means version {meant}")
        right = await self._learn(answer["model"])
        for place, found in zip(chosen, answer["predictions"], strict=True):
            apart = max(abs(found["scores"][k] - score) for k, score in right[place].items())
            if apart > TOLERANCE or found["label"] != max(
                right[place], key=right[place].__getitem__
            ):
                self._wrong(
                    f"{answer['model']}: input {place} is answered {found}, not {right[place]}"
                )

    async def _learn(self, version: str) -> list[dict[str, float]]:
        """The scores of a version for every input, one at a time, run here."""
        if version not in self._right:
            self._right[version] = asyncio.create_task(asyncio.to_thread(self._run, version))
        return await asyncio.shield(self._right[version])

    def _run(self, version: str) -> list[dict[str, float]]:
        trained = load(export(self._database, version, self._folder / version))
        inputs = trained.codec.read_inputs(
            [_as_json(value) for value in self._models[version.partition("@")[0]].inputs]
        )
        return [trained.predict([value])[0].scores for value in inputs]

    # Changes

    async def _change(self) -> None:
        """Whoever manages the models does something to one of them."""
        await asyncio.sleep(self._draw.uniform(0.1, 1.0))
        model = self._draw.choice([*self._models.values()])
        act = self._acts[0] if self._acts else self._draw.choice(self._any_act)
        await act(model)
        self.report.changes[act.__name__.strip("_")] += 1
        self._acts = self._acts[1:]

    async def _switch(self, model: _Model) -> None:
        await self._point(model, self._draw.choice(sorted(model.versions)))

    async def _renew(self, model: _Model) -> None:
        """A new version, and the oldest one goes; the alias moves away from it before.

        Clients go on asking for it until it must be known everywhere.
        """
        await self._publish(model)
        oldest = min(model.versions)
        await self._point(model, max(model.versions))
        await self._learn(f"{model.name}@{oldest}")
        await self._delete(model, f"{model.name}@{oldest}", [f"{model.name}@{oldest}"])
        await asyncio.sleep(SHOWS_SECONDS + 1)
        model.versions.discard(oldest)

    async def _replace(self, model: _Model) -> None:
        """Another model of the same task comes, and this one goes with all its versions."""
        await self._add_model(model.task)
        for version in model.versions:
            await self._learn(f"{model.name}@{version}")
        refs = [f"{model.name}@{version}" for version in model.versions]
        await self._delete(model, model.name, [model.name, f"{model.name}@live", *refs])
        await asyncio.sleep(SHOWS_SECONDS + 1)
        del self._models[model.name]

    async def _add_model(self, task: str) -> None:
        name = f"{task.split('-')[0]}-{next(self._numbers)}"
        draw = Random(name)
        inputs: list[Any] = [_row(draw, place % 2) for place in range(INPUTS)]
        if task == IMAGES:
            inputs = [png(image) for image in digits()[1].images[:INPUTS]]
        model = _Model(name, task, self._datasets[task], inputs, set())
        for _ in range(VERSIONS):
            await self._publish(model)
        await self._point(model, 1)
        self._models[name] = model

    async def _publish(self, model: _Model) -> None:
        number = max(model.versions, default=0) + 1
        for ref in (model.name, f"{model.name}@{number}"):
            self._meanings.begin(ref, number, time.monotonic())
        training = {"epochs": 1, "batch_size": 32, "seed": number}
        task = {"name": model.task, "architecture": TINY[model.task]}
        asked = {"name": model.name, "task": task, "training": training}
        await asyncio.to_thread(self._train, model.dataset, asked)
        for ref in (model.name, f"{model.name}@{number}"):
            self._meanings.end(ref, time.monotonic())
        model.versions.add(number)

    def _train(self, dataset: str, asked: dict[str, Any]) -> None:
        client = self._clients[0]
        client.wait(client.submit(dataset, **asked)["id"])

    async def _point(self, model: _Model, version: int) -> None:
        ref = f"{model.name}@live"
        self._meanings.begin(ref, version, time.monotonic())
        await self._manage("PUT", f"/v1/models/{model.name}/aliases/live", {"version": version})
        self._meanings.end(ref, time.monotonic())

    async def _delete(self, model: _Model, ref: str, gone: Sequence[str]) -> None:
        for one in gone:
            self._meanings.begin(one, None, time.monotonic())
        await self._manage("DELETE", f"/v1/models/{ref}", None)
        for one in gone:
            self._meanings.end(one, time.monotonic())

    async def _manage(self, method: str, path: str, sent: Any) -> None:
        client = self._draw.choice(self._clients)
        response = await asyncio.to_thread(client.http.request, method, path, json=sent)
        if not response.is_success:
            raise Refused(f"{method} {path}: {response.status_code} {response.text}")

    def _upload(self, task: str) -> str:
        path = self._folder / ("data.zip" if task == IMAGES else "data.jsonl")
        if task == IMAGES:
            train, _ = digits()
            image_folder(path, train.images[:200], map(str, train.digits[:200]))
        else:
            draw = Random(0)
            rows = [{**_row(draw, n % 2), "label": f"class {n % 2}"} for n in range(200)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found: str = self._clients[0].upload(task, task, {"file": path})["id"]
        return found


def _row(draw: Random, label: int) -> dict[str, Any]:
    colour = draw.choice(["red", "blue"])
    return {"a": round(draw.gauss(label, 1), 3), "b": round(draw.gauss(0, 2), 3), "colour": colour}


def _as_json(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _misuses(model: _Model) -> list[tuple[str, dict[str, Any]]]:
    """What is sent to which name."""
    good = _as_json(model.inputs[0])
    bad: dict[str, Any] = {
        "headers": {"Content-Type": "image/png"},
        "content": b"\x89PNG\r\n\x1a\n, not",
    }
    if model.task == TABLE:
        bad = {"json": {"inputs": [{"a": "many"}, good, {"size": 1}]}}
    return [
        (model.name, bad),
        (model.name, {"json": {"inputs": [good, 7]}}),
        (model.name, {"json": {"inputs": []}}),
        (model.name, {"json": {"inputs": [good], "parameters": {"top_k": 0}}}),
        (model.name, {"content": b'{"inputs": [', "headers": {"Content-Type": "application/json"}}),
        (model.name, {"content": b"a,b\n1,2\n", "headers": {"Content-Type": "text/csv"}}),
        (model.name, {"json": {"inputs": [good]}, "headers": {"Authorization": "Bearer nobody"}}),
        (f"{model.name}@99", {"json": {"inputs": [good]}}),
        ("nobody", {"json": {"inputs": [good]}}),
    ]


def _resident(pid: int) -> int:
    """Bytes of memory a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
