"""Real worker processes on a real database, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from store import workers
from tests.worker.shop import Shop

PATIENCE_SECONDS = 60.0
"""How long a loaded machine may take for what takes a second."""
USUAL = {
    "DEVICES": "cpu",
    "THREADS": "1",
    "LEASE_SECONDS": "5",
    "HEARTBEAT_SECONDS": "0.4",
    "POLL_SECONDS": "0.1",
    "CHECKPOINT_SECONDS": "0.2",
}


class Worker:
    """One `python -m worker`, ready to take jobs."""

    def __init__(self, shop: Shop, **settings: str) -> None:
        asked = {
            "DATABASE_URL": shop.settings.database,
            "DATA_DIR": str(shop.folder),
            **USUAL,
            **settings,
        }
        environment = {f"MODELYARD_{name}": value for name, value in asked.items()}
        self._log = (shop.folder / f"worker-{time.monotonic_ns()}.log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid
        until(lambda: self._forks() and self._serves(shop), "the worker serves", self)

    def _serves(self, shop: Shop) -> bool:
        return any(row.pid == self.pid for row in shop.act(workers.all))

    def _forks(self) -> bool:
        """Whether the warm process is there."""
        return len(children(self.pid)) == 2

    @property
    def trainers(self) -> list[int]:
        return [pid for child in children(self.pid) for pid in children(child)]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        if self.alive:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()


def children(pid: int) -> list[int]:
    """Of all of its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in _read(path).split()]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], object], what: str, worker: Worker | None = None) -> float:
    """Wait for something to come true; how many seconds it took."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > PATIENCE_SECONDS or not (worker is None or worker.alive):
            log = worker.log if worker else ""
            raise AssertionError(f"not in {waited:.0f} s: {what}\n{log}")
        time.sleep(0.02)
    return time.monotonic() - began
