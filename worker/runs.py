"""A trainer at work, as its supervisor sees it."""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from store.columns import Object
from store.tables import Job
from worker import trainer
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit

log = logging.getLogger(__name__)

NEVER = float("inf")
_SIGNALS = {number.value: number.name for number in signal.Signals}
_FORKED = get_context("forkserver")
_LEFT: dict[Exit, Object] = {
    Exit.UNREACHABLE: {
        "code": "unreachable",
        "message": "The database was away for too long, or took no more data.",
    },
    Exit.DISK_FULL: {"code": "disk_full", "message": "The worker's disk is full."},
}
"""What a trainer says by the status it leaves with."""


def warm_up() -> None:
    """Start the process that trainers are forked from; it loads torch while nobody waits for it."""
    # Torch reads it when it is loaded, which `worker.warm` does first; `models` says what it is for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _FORKED.set_forkserver_preload(["worker.warm"])
    forkserver.ensure_running()


def wait_until_warm() -> None:
    """Return when trainers start at once: none should have a lease run out while torch is loaded."""
    process = _FORKED.Process(target=int, name="warm")
    _fork(process)
    process.join()
    process.close()


class Run:
    """One run of one job in a process of its own, which is there from the start."""

    def __init__(
        self, job: Job, devices: Sequence[str], threads: int, settings: WorkerSettings
    ) -> None:
        """It has so many `threads` on each of its `devices`."""
        self.job = job
        self.renewed = time.monotonic()
        """When the lease was last known to be ours."""
        self.told: set[Command] = set()
        self.peak_bytes = 0
        """The most memory it was seen to use."""
        self._stall_seconds = settings.stall_seconds
        self._heard = time.monotonic()
        self._stalled = False
        self._deadline = NEVER
        self._process, self._commands = _start(
            Assignment(
                job.id,
                job.lease_epoch,
                devices[0],
                threads,
                tuple(devices[1:]),
                job.request.get("resources", {}).get("sharded", False),
            ),
            settings,
        )

    def ends_within(self, seconds: float) -> bool:
        """Wait for the trainer's end, at most so long; kill it when its time is over."""
        if wait([self._process.sentinel], seconds):
            self._process.join()
            self._commands.close()
            return True
        self._look_after()
        if time.monotonic() >= self._deadline:
            self._process.kill()
        return False

    def _look_after(self) -> None:
        """Note how much memory it takes, and end it when it gave no sign of life for too long."""
        self.peak_bytes = max(self.peak_bytes, _peak_bytes(self._process.pid))
        with suppress(EOFError, OSError):
            while self._commands.poll():
                self._commands.recv()
                self._heard = time.monotonic()
        if time.monotonic() - self._heard > self._stall_seconds:
            self._stalled = True
            self.kill()

    def tell(self, command: Command, grace: float = NEVER) -> None:
        """Pass on a command, once; the trainer is killed if it is still there after `grace` seconds."""
        if command in self.told:
            return
        self.told.add(command)
        self._deadline = min(self._deadline, time.monotonic() + grace)
        try:
            self._commands.send(command)
        except OSError:
            log.debug("%s ended before it could be told to %s", self.job.id, command)

    def kill(self) -> None:
        self._deadline = 0.0

    @property
    def was_ended(self) -> bool:
        """Whether it ended because it was told to, and so is not at fault."""
        return bool(self.told & {"drain", "cancel", "preempt"})

    def cause(self) -> Object:
        """What an ended trainer died of, told so that a user can act on it."""
        if self._stalled:
            message = f"The training showed no sign of life for {self._stall_seconds:.0f} s."
            return {"code": "stalled", "message": message, **self._memory()}
        code = self._process.exitcode or 0
        if code < 0:
            return self._killed(-code)
        if code in _LEFT:
            return _LEFT[Exit(code)]
        message = f"The training process ended with status {code}."
        return {"code": "crashed", "message": message, **self._memory()}

    def _killed(self, number: int) -> Object:
        name = _SIGNALS.get(number, f"signal {number}")
        used = f" while it used {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""
        hint = "; the machine may be short of memory" if number == signal.SIGKILL else ""
        message = f"The training process was killed by {name}{used}{hint}."
        return {"code": "killed", "signal": name, "message": message, **self._memory()}

    def _memory(self) -> Object:
        return {"memory_bytes": self.peak_bytes} if self.peak_bytes else {}


def _peak_bytes(pid: int | None) -> int:
    """The most memory a process and those it started have used, where the machine tells; 0 elsewhere."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    own = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
    # Its main thread is what starts any.
    started = _read(f"/proc/{pid}/task/{pid}/children").split()
    return own + sum(_peak_bytes(int(child)) for child in started)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _start(assignment: Assignment, settings: WorkerSettings) -> tuple[BaseProcess, Connection]:
    theirs, ours = Pipe()
    process = _FORKED.Process(
        target=trainer.main, args=(assignment, settings, theirs), name=assignment.job_id
    )
    _fork(process)
    theirs.close()
    return process, ours


def fork(name: str, target: Callable[..., None], *given: object) -> BaseProcess:
    """A process that has begun to do something else than to train."""
    process = _FORKED.Process(target=target, args=given, name=name)
    _fork(process)
    return process


def _fork(process: BaseProcess) -> None:
    """Start a process. The one it is forked from may be killed at any moment, and is then started again."""
    while True:
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            log.warning("the process that trainers are forked from was lost: %r", error)
        else:
            return
