"""The service as users run it: real processes with real settings, on both ways to run."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cli.client import Client, ready
from cli.processes import GRACE_SECONDS, free_port

ROOT = Path(__file__).parent.parent


class Service:
    """A running service and its processes, each of which a test may kill."""

    def __init__(self, url: str, key: str, parts: dict[str, subprocess.Popen[bytes]]) -> None:
        self.url, self.parts = url, parts
        self.client = Client(url, key, timeout=120)


@contextmanager
def embedded(folder: Path, root: Path = ROOT) -> Iterator[Service]:
    """`modelyard up`: SQLite, no broker, one worker."""
    key, port = f"my_{secrets.token_urlsafe(32)}", free_port()
    settings = {"MODELYARD_ADMIN_KEY": key}
    with ExitStack() as stack:
        up = stack.enter_context(
            _process(folder, root, settings, "up", "--data", str(folder), "--port", str(port))
        )
        service = _ready(port, key, {"up": up}, folder)
        stack.callback(service.client.close)
        yield service


@contextmanager
def production(folder: Path, database_url: str, redis_url: str) -> Iterator[Service]:
    """The processes of docker-compose.yml: API, reconciler, and a worker for each of two queues."""
    key, port = f"my_{secrets.token_urlsafe(32)}", free_port()
    shared = {"MODELYARD_DATABASE_URL": database_url, "MODELYARD_BROKER_URL": redis_url}

    def settings(name: str, **extra: str) -> dict[str, str]:
        return {**shared, "MODELYARD_DATA_DIR": str(folder / name), **extra}

    with _process(folder, ROOT, settings("migrate"), "migrate") as migration:
        assert migration.wait(60) == 0
    commands = {
        "api": (settings("api", MODELYARD_ADMIN_KEY=key), ["api", "--port", str(port)]),
        "cpu": (settings("cpu"), ["worker", "--queues", "cpu"]),
        "gpu": (settings("gpu", MODELYARD_DEVICES="cpu"), ["worker", "--queues", "gpu"]),
        "reconciler": (settings("reconciler"), ["reconciler"]),
    }
    with ExitStack() as stack:
        parts = {
            name: stack.enter_context(_process(folder, ROOT, own, *command, log=name))
            for name, (own, command) in commands.items()
        }
        service = _ready(port, key, parts, folder)
        stack.callback(service.client.close)
        yield service


def _ready(port: int, key: str, parts: dict[str, subprocess.Popen[bytes]], folder: Path) -> Service:
    url = f"http://127.0.0.1:{port}"
    if not ready(url, lambda: all(part.poll() is None for part in parts.values())):
        said = "\n".join(path.read_text()[-3_000:] for path in sorted(folder.glob("*.log")))
        raise AssertionError(f"the service did not start:\n{said}")
    return Service(url, key, parts)


@contextmanager
def _process(
    folder: Path, root: Path, settings: Mapping[str, str], *command: str, log: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    environment = {**plain, "PYTHONPATH": str(root), **settings}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{log or command[0]}.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *command],
            cwd=root,
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(GRACE_SECONDS + 10)
