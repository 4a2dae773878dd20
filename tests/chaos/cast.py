"""Who plays: the processes of a whole service, its database and its broker, each ready to be hurt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tests import servers
from tests.processes import Part, Service, production
from tests.servers import Postgres, Redis

LEASE_SECONDS, STALL_SECONDS = 5.0, 15.0
SETTINGS = {
    "MODELYARD_LEASE_SECONDS": str(LEASE_SECONDS),
    "MODELYARD_HEARTBEAT_SECONDS": "0.7",
    "MODELYARD_POLL_SECONDS": "1",
    "MODELYARD_CHECKPOINT_SECONDS": "0.3",
    "MODELYARD_CHECKPOINT_SHARE": "1",
    "MODELYARD_STALL_SECONDS": str(STALL_SECONDS),
    "MODELYARD_DRAIN_SECONDS": "10",
    "MODELYARD_THREADS": "1",
    "MODELYARD_WEBHOOK_PRIVATE": "true",
}
"""Short times, so that much happens."""


class Cast(NamedTuple):
    """A running service and what it stands on."""

    service: Service
    postgres: Postgres
    redis: Redis
    folder: Path

    @property
    def apis(self) -> list[Part]:
        return self._named("api")

    @property
    def workers(self) -> list[Part]:
        return self._named("worker")

    @property
    def reconciler(self) -> Part:
        return self.service.parts["reconciler"]

    def _named(self, kind: str) -> list[Part]:
        return [part for name, part in self.service.parts.items() if name.startswith(kind)]

    def left_over(self) -> list[str]:
        """Processes of the service: its parts, and all that they have started."""
        mine = f"{self.folder}/"
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MODELYARD_DATA_DIR", "").startswith(mine):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
        return found


class Hurt(NamedTuple):
    """Who was hurt, and what is to be done later, in so many seconds."""

    who: str
    later: tuple[tuple[float, Callable[[], None]], ...] = ()


class Nobody(Exception):
    """There was nobody to hurt just now."""


Fault = Callable[[Cast, Random], Hurt]
"""Hurts one of the cast. Raises Nobody."""


@contextmanager
def cast(folder: Path, root: Path) -> Iterator[Cast]:
    """Two APIs, two workers with a slot each, a reconciler, PostgreSQL, and Redis without persistence.

    Everything lies in `folder`, which other users must be able to enter; the code is that of `root`.
    """
    with (
        servers.postgres(folder) as postgres,
        servers.redis_server(folder) as redis,
        production(
            folder,
            postgres.url,
            redis.url,
            root=root,
            apis=["api-1", "api-2"],
            workers={"worker-1": "cpu", "worker-2": "cpu"},
            extra=SETTINGS,
        ) as service,
    ):
        yield Cast(service, postgres, redis, folder)


def trainers(worker: Part) -> list[psutil.Process]:
    """The processes that train, or are being started to."""
    return [trainer for parent in _children(worker.pid) for trainer in _children(parent.pid)]


def nursery(worker: Part) -> list[psutil.Process]:
    """The process that trainers are forked from, if it is there."""
    found = []
    for child in _children(worker.pid):
        with suppress(psutil.Error):
            if any("forkserver" in word for word in child.cmdline()):
                found.append(child)
    return found


def tree(part: Part) -> list[psutil.Process]:
    """A process and all that it has started, itself first."""
    with suppress(psutil.Error):
        process = psutil.Process(part.pid)
        return [process, *process.children(recursive=True)]
    return []


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        found: list[psutil.Process] = psutil.Process(pid).children()
        return found
    return []
