"""The process that trains: bound to its worker and to its limits before anything heavy is loaded."""

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from enum import IntEnum
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple

from worker.settings import WorkerSettings

Command = Literal["cancel", "stop", "pause", "preempt", "drain"]
SIGN_SECONDS = 1.0
"""How often a trainer shows that it lives: what a stopped supervisor does not read must not fill the pipe soon."""
_PR_SET_PDEATHSIG = 1
_FIRST_TO_GO = "800"
"""When the machine runs out of memory: the trainer, not the worker that reports it."""


class Exit(IntEnum):
    """How a trainer ends when nothing kills it."""

    DONE = 0
    """The job's row says how it went."""
    DISK_FULL = 74
    """This machine's disk has no room for what the job needs."""
    UNREACHABLE = 75
    """The database was away for too long."""
    FENCED = 78
    """Somebody else has the job."""


class Assignment(NamedTuple):
    """One run of one job."""

    job_id: str
    lease_epoch: int
    device: str
    threads: int


class Inbox:
    """What the supervisor tells the trainer, which looks between steps."""

    def __init__(self, commands: Connection) -> None:
        self._latest: Command | None = None
        self._commands = commands
        self._seen_alive = 0.0
        Thread(target=self._listen, name="inbox", daemon=True).start()

    def look(self) -> Command | None:
        """What there is to do instead of going on. That somebody looks is a sign of life for the supervisor."""
        if time.monotonic() - self._seen_alive >= SIGN_SECONDS:
            self._seen_alive = time.monotonic()
            with suppress(OSError):
                self._commands.send(None)
        return self._latest

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._latest = self._commands.recv()
        # The worker is gone, and with it the lease: nothing that is still learned could be kept.
        os._exit(Exit.FENCED)


def main(assignment: Assignment, settings: WorkerSettings, commands: Connection) -> None:
    """Run the job and leave with an `Exit`."""
    inbox = Inbox(commands)
    _bind_to_parent()
    _limit(settings, assignment)
    # By name: the supervisor imports this module, and must not load what trains.
    run = import_module("worker.jobs").run
    sys.exit(run(assignment, settings, inbox))


def _bind_to_parent() -> None:
    """End with the process this one was forked from; hear of the worker's end by the inbox."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit(settings: WorkerSettings, assignment: Assignment) -> None:
    os.umask(0o077)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    # A GPU's memory is mapped too, so that such a limit would be one on the GPU.
    if settings.memory_bytes and assignment.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (settings.memory_bytes,) * 2)
