"""Predictions per second, and how long they take, beside the bare network, a bare server, and what people use.

The service trains three small networks, which all contestants then serve by the same weights, each in a process
of its own; every answer must be that of the network run directly. Clients in a closed loop ask each contestant
in turn, in an order that rotates, so that noise hits all alike; what is compared is of the same round: medians.

`limit` is the network alone, without HTTP, at its best batch size; `echo` a bare ASGI application that answers
the same to all; `fastapi` has the model in its handler, `async def` and `def`, of which the better one counts.
LitServe, BentoML and Ray Serve take part when `--peers` names an interpreter that has them beside Modelyard.

On two cores or more the servers share one and the clients have another, so that nobody takes the other's time.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import torch

from bench._exported import export, load
from bench._load import Request, Turn, drive
from bench._service import add_peers, has, service_in, web_process
from bench._serving_contestants import CONTESTANTS
from bench._serving_workloads import WORKLOADS, Workload
from cli.processes import free_port
from store.session import connect
from tasks.trained import Trained

BATCH_SIZES = [2**power for power in range(8)]
START_SECONDS = 120.0
STOP_SECONDS = 15.0
TOLERANCE = 1e-4
"""By which scores may differ: a network computes in another order in a batch of another size."""
LIMIT, ECHO, OURS, FASTAPI = "limit", "echo", "modelyard", "fastapi"
HANDLERS = (FASTAPI, "fastapi in threads")
SERVERS_CORE, CLIENTS_CORE = 0, -1
"""Places in the list of the cores that this process may use."""
Ask = Callable[[int, float], Turn]
"""So many clients for so many seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="workloads, comma-separated")
    parser.add_argument("--contestants", default="", help="beside the limit; all if left out")
    parser.add_argument("--clients", default="1,8,64", help="at the same time, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, at least")
    parser.add_argument("--threads", type=int, default=1, help="of each forward pass")
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=len(_cores()) > 1,
        help="servers on one core, clients on another",
    )
    add_peers(parser, "litserve, bentoml or ray[serve]")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in arguments.only.split(",") if name] or list(WORKLOADS)
    who = [name for name in arguments.contestants.split(",") if name] or _installed(arguments.peers)
    cells: dict[str, Any] = {}
    torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        _train([WORKLOADS[name] for name in names], folder)
        stack.enter_context(_on(CLIENTS_CORE, arguments.pin))
        _print_row("", _titles(who))
        for name in names:
            cells |= _measure(WORKLOADS[name], who, folder, arguments)
    settings = {name: getattr(arguments, name) for name in ("rounds", "seconds", "threads", "pin")}
    return {**settings, "cells": cells}


def _measure(
    workload: Workload, who: list[str], folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The cells of a workload, {"mlp/8": ...}, each printed when it is done."""
    cells = {}
    trained = load(folder / workload.name)
    with ExitStack() as stack:
        asks: dict[str, Ask] = {LIMIT: _bare(workload, trained, pin=arguments.pin)}
        if OURS in who:
            asks[OURS] = stack.enter_context(_ours(workload, trained, folder, arguments))
        others = [name for name in who if name != OURS]
        asks |= stack.enter_context(_others(others, workload, trained, folder, arguments))
        for clients in map(int, arguments.clients.split(",")):
            rounds = []
            for number in range(arguments.rounds):
                shift = number % len(asks)
                order = [*asks][shift:] + [*asks][:shift]
                rounds.append({name: asks[name](clients, arguments.seconds) for name in order})
            cell = cells[f"{workload.name}/{clients}"] = _compare(rounds)
            _show(f"{workload.name}/{clients}", cell)
    return cells


# Cells


def _compare(rounds: Sequence[dict[str, Turn]]) -> dict[str, Any]:
    """What the rounds of a cell say, as far as its contestants were there."""
    names = list(rounds[0])
    rates = [{name: turn.per_second for name, turn in each.items()} for each in rounds]
    found: dict[str, Any] = {
        "per_second": {n: statistics.median(rate[n] for rate in rates) for n in names},
        "p50_ms": {n: _latency(rounds, n, 0.5) for n in names if n != LIMIT},
        "p99_ms": {n: _latency(rounds, n, 0.99) for n in names if n != LIMIT},
        "clients_share_of_core": max(turn.generator for each in rounds for turn in each.values()),
    }
    if OURS not in names:
        return found
    found["share_of_limit"] = statistics.median(rate[OURS] / rate[LIMIT] for rate in rates)
    if ECHO in names:
        found["share_of_echo"] = statistics.median(rate[OURS] / rate[ECHO] for rate in rates)
        # Of what one core can do at best: a request takes the time of HTTP and that of the network.
        both = [rate[OURS] * (1 / rate[LIMIT] + 1 / rate[ECHO]) for rate in rates]
        found["share_of_both"] = statistics.median(both)
    found["over"], found["p99_of"] = {}, {}
    for rival, servers in _rivals(names).items():
        found["over"][rival] = statistics.median(
            rate[OURS] / max(rate[name] for name in servers) for rate in rates
        )
        found["p99_of"][rival] = statistics.median(
            each[OURS].percentile(0.99) / min(each[name].percentile(0.99) for name in servers)
            for each in rounds
        )
    return {**found, "over_fastapi": found["over"].get(FASTAPI)}


def _latency(rounds: Sequence[dict[str, Turn]], name: str, share: float) -> float:
    return 1e3 * statistics.median(each[name].percentile(share) for each in rounds)


def _rivals(names: Sequence[str]) -> dict[str, list[str]]:
    """Those to be ahead of, each with its servers, the best of which counts."""
    handlers = [name for name in names if name in HANDLERS]
    peers = {name: [name] for name in names if name in CONTESTANTS and CONTESTANTS[name].is_peer}
    return {**({FASTAPI: handlers} if handlers else {}), **peers}


def _titles(who: Sequence[str]) -> list[str]:
    ours = ["limit/s", "echo/s", "ours/s", "of limit", "of echo", "of both"]
    return ours + [title for rival in _rivals(who) for title in (f"/{rival}", "p99")]


def _show(name: str, cell: dict[str, Any]) -> None:
    rates, shares = cell["per_second"], [cell.get(f"share_of_{n}") for n in (LIMIT, ECHO, "both")]
    row = [f"{rates[n]:.0f}" if n in rates else "" for n in (LIMIT, ECHO, OURS)]
    over, p99 = cell.get("over", {}), cell.get("p99_of", {})
    shares += [number for rival in over for number in (over[rival], p99[rival])]
    _print_row(name, row + ["" if n is None else f"{n:.2f}" for n in shares])


def _print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:12}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


# Contestants


def _installed(python: str) -> list[str]:
    """Everybody but the peers that the interpreter has not."""
    others = [n for n, c in CONTESTANTS.items() if not c.is_peer or has(python, c.package)]
    return [OURS, *others]


def _train(workloads: Sequence[Workload], folder: Path) -> None:
    """Have the service train the models, and export each into a folder of its name."""
    with service_in(folder / "service", LOG_LEVEL="WARNING") as client:
        for workload in workloads:
            workload.train(client, folder)
    database = connect(_database(folder))
    for workload in workloads:
        export(database, workload.name, folder / workload.name)
    database.dispose()


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'service' / 'modelyard.sqlite'}"


def _bare(workload: Workload, trained: Trained, *, pin: bool) -> Ask:
    """The network alone, in this process, on inputs that are tensors already."""
    read = trained.codec.read_inputs([_value(workload, value) for value in workload.inputs()])
    columns = trained.codec.encode_inputs(read)

    def rate(size: int, seconds: float) -> float:
        index = torch.arange(size) % columns.examples
        inputs = columns.batch(index).inputs
        with _on(SERVERS_CORE, pin), torch.inference_mode():
            trained.learner.predict(*inputs)
            done, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds or not done:
                trained.learner.predict(*inputs)
                done += size
        return done / took

    best = max(BATCH_SIZES, key=lambda size: rate(size, 0.2))
    return lambda clients, seconds: Turn(rate(best, seconds), [], 0.0)


def _value(workload: Workload, value: Any) -> Any:
    return {"image": value} if workload.side else value


@contextmanager
def _ours(
    workload: Workload, trained: Trained, folder: Path, arguments: argparse.Namespace
) -> Iterator[Ask]:
    """The service's web side, by default settings but for the threads."""
    settings = {"PREDICT_THREADS": str(arguments.threads)}
    with ExitStack() as stack:
        with _on(SERVERS_CORE, arguments.pin):
            started = web_process(folder / "service", _database(folder), **settings)
            client, _ = stack.enter_context(started)
        headers = {"Authorization": client.http.headers["Authorization"]}
        path, port = f"/v1/models/{workload.name}/predict", client.http.base_url.port
        assert port is not None
        requests = [workload.request(value, path, headers) for value in workload.inputs()]
        yield _asking(OURS, port, requests, workload, trained)


@contextmanager
def _others(
    names: Sequence[str],
    workload: Workload,
    trained: Trained,
    folder: Path,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Ask]]:
    """Everybody else, started at the same time."""
    asks, ports = {}, {name: free_port() for name in names}
    with ExitStack() as stack:
        with _on(SERVERS_CORE, arguments.pin):
            started = {
                name: stack.enter_context(_process(name, workload, port, folder, arguments))
                for name, port in ports.items()
            }
        for name, port in ports.items():
            json_only = CONTESTANTS[name].json_only
            made = workload.json_request if json_only else workload.request
            requests = [made(value, "/predict", {}) for value in workload.inputs()]
            if not _answers(port, requests[0], started[name]):
                said = _log(folder, name).read_text()
                raise RuntimeError(f"{name} did not start:\n{said[-3_000:]}")
            asks[name] = _asking(name, port, requests, workload, trained)
        yield asks


@contextmanager
def _process(
    name: str, workload: Workload, port: int, folder: Path, arguments: argparse.Namespace
) -> Iterator["subprocess.Popen[bytes]"]:
    python = arguments.peers if CONTESTANTS[name].is_peer else sys.executable
    given = [name, str(folder / workload.name), str(port), str(arguments.threads)]
    with _log(folder, name).open("w") as said:
        process = subprocess.Popen(
            [python, "-m", "bench._serving_contestants", *given],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):  # some of a peer's processes outlive a polite request
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _answers(port: int, request: Request, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until it answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if _post(port, request).is_success:
                return True
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    return False


def _post(port: int, request: Request) -> httpx2.Response:
    url = f"http://127.0.0.1:{port}{request.path}"
    return httpx2.post(url, content=request.body, headers=request.headers, timeout=30)


def _asking(
    name: str, port: int, requests: list[Request], workload: Workload, trained: Trained
) -> Ask:
    """How to ask a server that runs. Raises RuntimeError when it answers other than the network."""
    if name != ECHO:
        values = [_value(workload, value) for value in workload.inputs()]
        expected = trained.predict(trained.codec.read_inputs(values), batch_size=1)
        for request, right in zip(requests, expected, strict=True):
            scores = _scores(_post(port, request).raise_for_status().json())
            if any(abs(scores[label] - score) > TOLERANCE for label, score in right.scores.items()):
                raise RuntimeError(f"{name} answers {scores} instead of {right.scores}")
    return lambda clients, seconds: drive(port, requests, clients, seconds)


def _scores(answer: Any) -> dict[str, float]:
    """Of the only prediction of an answer."""
    predictions = answer["predictions"] if isinstance(answer, dict) else answer
    scores: dict[str, float] = predictions[0]["scores"]
    return scores


# Cores


def _cores() -> list[int]:
    """Those that this process may use; none where it cannot choose."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


_CORES = _cores()


@contextmanager
def _on(place: int, pin: bool) -> Iterator[None]:
    """Have this thread, and the processes that it starts, on one core, if that is asked for."""
    if not pin:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_CORES[place]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
