"""A trainer at work, as its supervisor sees it."""

import logging
import os
import signal
import time
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess

from store.tables import Job
from worker import trainer
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command

log = logging.getLogger(__name__)

NEVER = float("inf")
_SIGNALS = {number.value: number.name for number in signal.Signals}
_FORKED = get_context("forkserver")


def warm_up() -> None:
    """Start the process that trainers are forked from; it loads torch while nobody waits for it."""
    # Torch reads it when it is loaded, which `worker.warm` does first; `models` says what it is for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _FORKED.set_forkserver_preload(["worker.warm"])
    forkserver.ensure_running()


def wait_until_warm() -> None:
    """Return when trainers start at once: none should have a lease run out while torch is loaded."""
    process = _FORKED.Process(target=int, name="warm")
    process.start()
    process.join()
    process.close()


class Run:
    """One run of one job in a process of its own, which is there from the start."""

    def __init__(self, job: Job, device: str, threads: int, settings: WorkerSettings) -> None:
        self.job = job
        self.renewed = time.monotonic()
        """When the lease was last known to be ours."""
        self.told: set[Command] = set()
        self._deadline = NEVER
        self._process, self._commands = _start(
            Assignment(job.id, job.lease_epoch, device, threads), settings
        )

    def ends_within(self, seconds: float) -> bool:
        """Wait for the trainer's end, at most so long; kill it when its time is over."""
        if wait([self._process.sentinel], seconds):
            self._process.join()
            self._commands.close()
            return True
        if time.monotonic() >= self._deadline:
            self._process.kill()
        return False

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
        return bool(self.told & {"drain", "cancel"})

    def cause(self) -> dict[str, str]:
        """What an ended trainer died of, told so that a user can act on it."""
        code = self._process.exitcode or 0
        if code < 0:
            name = _SIGNALS.get(-code, f"signal {-code}")
            hint = "; the machine may be short of memory" if code == -signal.SIGKILL else ""
            message = f"The training process was killed by {name}{hint}."
            return {"code": "killed", "signal": name, "message": message}
        if code == trainer.Exit.UNREACHABLE:
            return {"code": "unreachable", "message": "The database could not be reached any more."}
        return {"code": "crashed", "message": f"The training process ended with status {code}."}


def _start(assignment: Assignment, settings: WorkerSettings) -> tuple[BaseProcess, Connection]:
    theirs, ours = Pipe(duplex=False)
    process = _FORKED.Process(
        target=trainer.main, args=(assignment, settings, theirs), name=assignment.job_id
    )
    process.start()
    theirs.close()
    return process, ours
