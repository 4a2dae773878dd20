"""The service as users run it: real processes with real settings, on both ways to run."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from cli.client import Client, ready
from cli.processes import GRACE_SECONDS, free_port

ROOT = Path(__file__).parent.parent
_PACKAGES = ("api", "cli", "migrations", "models", "store", "tasks", "worker")
_QUEUES = MappingProxyType({"cpu": "cpu", "gpu": "gpu"})
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Part:
    """One process of the service, which may be ended and started again as it was."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        root: Path,
        settings: Mapping[str, str],
    ) -> None:
        """`modelyard COMMAND` of the tree `root`; what it says goes to a log in `folder`."""
        self.name, self.log = name, folder / f"{name}.log"
        self._command = [sys.executable, "-m", "cli.main", *command]
        plain = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
        self._environment = {**plain, "PYTHONPATH": str(root), **settings}
        self._root = root
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self._root, env=self._environment, stdout=output, stderr=output
            )
        self.pid, self.started = self._process.pid, time.monotonic()
        self.sent: set[signal.Signals] = set()
        """The signals it got since it was started."""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        self.sent.add(number)
        self._process.send_signal(number)

    def wait(self, seconds: float = GRACE_SECONDS + 10) -> int:
        """Its exit status. Raises TimeoutExpired."""
        return self._process.wait(seconds)

    def end(self) -> int:
        """Have it leave; its exit status. Raises TimeoutExpired when it had to be killed."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        try:
            return self.wait()
        finally:
            self._process.kill()
            self._process.wait()


class Service:
    """A running service and its processes, each of which a test may kill."""

    def __init__(self, urls: Sequence[str], key: str, parts: Mapping[str, Part]) -> None:
        """Each of `urls` is one API's."""
        self.urls, self.key, self.parts = urls, key, parts
        self.url = urls[0]
        self.client = Client(self.url, key, timeout=120)


@contextmanager
def embedded(folder: Path, root: Path = ROOT) -> Iterator[Service]:
    """`modelyard up`: SQLite, no broker, one worker."""
    key, port = _new_key(), free_port()
    command = ["up", "--data", str(folder), "--port", str(port)]
    up = Part("up", command, folder, root, {"MODELYARD_ADMIN_KEY": key})
    with _running({"up": up}, [port], key) as service:
        yield service


@contextmanager
def api(folder: Path, database_url: str, root: Path = ROOT) -> Iterator[Service]:
    """An API alone, on a database that is there already."""
    key, port = _new_key(), free_port()
    settings = {
        "MODELYARD_DATABASE_URL": database_url,
        "MODELYARD_DATA_DIR": str(folder / "api"),
        "MODELYARD_ADMIN_KEY": key,
    }
    part = Part("api", ["api", "--port", str(port)], folder, root, settings)
    with _running({"api": part}, [port], key) as service:
        yield service


@contextmanager
def production(
    folder: Path,
    database_url: str,
    redis_url: str,
    *,
    root: Path = ROOT,
    apis: Sequence[str] = ("api",),
    workers: Mapping[str, str] = _QUEUES,
    extra: Mapping[str, str] = _NOTHING,
) -> Iterator[Service]:
    """The processes of docker-compose.yml: APIs, workers {name: queues}, all on the CPU, a reconciler.

    `extra` settings are for all of them.
    """
    key, ports = _new_key(), [free_port() for _ in apis]
    shared = {
        "MODELYARD_DATABASE_URL": database_url,
        "MODELYARD_BROKER_URL": redis_url,
        "MODELYARD_DEVICES": "cpu",
        **extra,
    }

    def part(name: str, *command: str, **own: str) -> Part:
        settings = {**shared, "MODELYARD_DATA_DIR": str(folder / name), **own}
        return Part(name, command, folder, root, settings)

    assert part("migrate", "migrate").wait(60) == 0
    parts = {
        api: part(api, "api", "--port", str(port), MODELYARD_ADMIN_KEY=key)
        for api, port in zip(apis, ports, strict=True)
    }
    parts |= {name: part(name, "worker", "--queues", queues) for name, queues in workers.items()}
    parts["reconciler"] = part("reconciler", "reconciler")
    with _running(parts, ports, key) as service:
        yield service


def copied(folder: Path) -> Path:
    """A copy of the tree, to be changed and to be run from."""
    root = folder / "modelyard"
    for package in _PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    return root


@contextmanager
def _running(parts: Mapping[str, Part], ports: Sequence[int], key: str) -> Iterator[Service]:
    """The service once it takes jobs; its parts are told to leave at the end."""
    with ExitStack() as stack:
        for part in parts.values():
            stack.callback(part.end)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            if not ready(url, lambda: all(part.alive for part in parts.values())):
                said = "\n".join(part.log.read_text()[-3_000:] for part in parts.values())
                raise AssertionError(f"the service did not start:\n{said}")
        service = Service(urls, key, parts)
        stack.callback(service.client.close)
        yield service


def _new_key() -> str:
    return f"my_{secrets.token_urlsafe(32)}"
