"""Samples per second of the service's own loop, beside the best loop one can write by hand, and what people use.

A process per contestant, all on the same data with networks of the same size; each trains one epoch in
turn, in an order that rotates, so that noise hits all alike. `share of limit` is the limit's time over
the contestant's in the same round: the median over the rounds.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench._contestants import compete, installed
from bench._workloads import WORKLOADS

WARM_UP = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of each contestant")
    parser.add_argument("--only", default="", help="workloads, comma-separated")
    parser.add_argument("--contestants", default="", help="beside the limit; all if left out")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in arguments.only.split(",") if name] or list(WORKLOADS)
    asked = [name for name in arguments.contestants.split(",") if name]
    who = ["limit", *asked] if asked else installed()
    workloads = {}
    print(f"{'':13}{'limit':>12}{'':12}" + "".join(f"{name:>16}" for name in who[1:]), flush=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
            workload = WORKLOADS[name](Path(folder))
            workload.make()
            rounds = _race(who, name, Path(folder), arguments)
            found = workloads[name] = _compare(rounds, workload.prepared().train.columns.examples)
        shares = "".join(f"{found['shares'][one]:>16.3f}" for one in who[1:])
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
