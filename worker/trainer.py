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
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple, get_args

from worker.settings import WorkerSettings

Command = Literal["cancel", "stop", "pause", "preempt", "drain"]
_COMMANDS: tuple[Command | None, ...] = (None, *get_args(Command))
SIGN_SECONDS = 1.0
"""How often a trainer shows that it lives: what a stopped supervisor does not read must not fill the pipe soon."""
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
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
    others: tuple[str, ...] = ()
    """Devices beside the first; each has a process of its own, with as many threads."""
    sharded: bool = False
    """Whether each of the devices holds a part of the learner, and none all of it."""


class Inbox:
    """What the supervisor tells the trainer, which looks between steps.

    A process that is forked from the trainer can look as well.
    """

    def __init__(self, commands: Connection) -> None:
        self._latest = mmap(-1, 1)
        """The place in `_COMMANDS` of what was told last; shared with processes forked from this one."""
        self._commands = commands
        self._seen_alive = 0.0
        Thread(target=self._listen, name="inbox", daemon=True).start()

    def look(self) -> Command | None:
        """What there is to do instead of going on. That somebody looks is a sign of life for the supervisor."""
        if time.monotonic() - self._seen_alive >= SIGN_SECONDS:
            self._seen_alive = time.monotonic()
            with suppress(OSError):
                self._commands.send(None)
        return _COMMANDS[self._latest[0]]

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._latest[0] = _COMMANDS.index(self._commands.recv())
        # The worker is gone, and with it the lease: nothing that is still learned could be kept.
        os._exit(Exit.FENCED)


def main(assignment: Assignment, settings: WorkerSettings, commands: Connection) -> None:
    """Run the job and leave with an `Exit`."""
    inbox = Inbox(commands)
    # Hears of the worker's end by the inbox.
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    keep_memory()
    _limit(settings, assignment)
    # By name: the supervisor imports this module, and must not load what trains.
    module = "worker.elastic" if assignment.others else "worker.jobs"
    sys.exit(import_module(module).run(assignment, settings, inbox))


def end_with_parent() -> None:
    """Have the kernel end this process with the one it was forked from."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_memory() -> None:
    """Let freed memory stay with this process, which asks for the same again in its next step.

    By default glibc gives large tensors back to the kernel, which zeroes them anew for every step: that took
    a third of the time of a training of the cnn, and a sixth of one of the lstm.
    """
    with suppress(AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _limit(settings: WorkerSettings, assignment: Assignment) -> None:
    os.umask(0o077)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    # A GPU's memory is mapped too, so that such a limit would be one on the GPU.
    if settings.memory_bytes and assignment.device == "cpu":
        each = settings.memory_bytes // (1 + len(assignment.others))
        resource.setrlimit(resource.RLIMIT_DATA, (each, each))
