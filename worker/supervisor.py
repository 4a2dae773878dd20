"""One per device: claims a job, starts its trainer, keeps the lease, passes on what the user asked for."""

import logging
import os
import random
import signal
import socket
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import ForkServerProcess
from threading import Event, Thread

from store import ids, jobs, workers
from store.errors import Fenced
from store.session import Database
from store.tables import Job
from worker import devices, trainer
from worker.devices import Device
from worker.outages import PATIENCE_SECONDS, Unreachable, persist
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often a running trainer is looked after; its end is noticed at once."""
CANCEL_SECONDS = 10.0
"""Time for a trainer to obey a cancel; it may be in a long step."""
GOODBYE_SECONDS = 5.0
"""How long a worker that is to stop waits for the database; the lease runs out by itself."""

forkserver = get_context("forkserver")


@dataclass
class Run:
    """A trainer at work."""

    job: Job
    process: ForkServerProcess
    commands: Connection
    told: set[Command] = field(default_factory=set)
    deadline: float = float("inf")
    """When it is killed, by the monotonic clock."""
    renewed: float = field(default_factory=time.monotonic)

    def tell(self, command: Command, grace: float = float("inf")) -> None:
        """Pass on a command, once; kill the trainer if it is still there after `grace` seconds."""
        if command in self.told:
            return
        self.told.add(command)
        self.deadline = min(self.deadline, time.monotonic() + grace)
        try:
            self.commands.send(command)
        except OSError:
            log.debug("%s ended before it could be told to %s", self.job.id, command)


class Supervisor(Thread):
    """Runs one job after the other on a device until it is told to stop."""

    def __init__(
        self,
        settings: WorkerSettings,
        database: Database,
        device: Device,
        queues: tuple[str, ...],
        threads: int,
        stopping: Event,
    ) -> None:
        super().__init__(name=f"supervisor of {device.name}", daemon=True)
        self.id = ids.new("wrk")
        self.bell = Event()
        self._settings, self._database, self._stopping = settings, database, stopping
        self._device, self._queues, self._threads = device, queues, threads
        self._next_beat = 0.0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._claim()
            except Unreachable as error:
                log.warning("no jobs while the database does not answer: %s", error.orig)
                self._stopping.wait(1.0)
                continue
            if job is not None:
                self._supervise(job)
            else:
                self.bell.wait(min(self._settings.poll, self._settings.heartbeat))
                self.bell.clear()
        self._say_goodbye()

    def _claim(self) -> Job | None:
        if time.monotonic() >= self._next_beat:
            self._beat("idle")
        # Most looks find nothing, and reading does not stand in the way of those who write.
        with self._database.transaction(read_only=True) as session:
            if not jobs.ready_count(session, self._queues):
                return None
        owner = f"{self.id}/{ids.new('claim')}"
        return persist(lambda: self._take(owner))

    def _take(self, owner: str) -> Job | None:
        with self._database.transaction() as session:
            return jobs.claim(session, owner, self._queues, self._settings.lease, self.id)

    def _supervise(self, job: Job) -> None:
        log.info("%s (attempt %d) starts on %s", job.id, job.attempt, self._device.name)
        run = self._start(job)
        self._next_beat = 0.0
        while not wait([run.process.sentinel], LOOK_SECONDS):
            if self._stopping.is_set():
                run.tell("drain", self._settings.drain_seconds)
            if time.monotonic() >= self._next_beat:
                self._heartbeat(run)
            if time.monotonic() >= run.deadline:
                run.process.kill()
        run.process.join()
        run.commands.close()
        self._conclude(run)
        self._next_beat = 0.0

    def _start(self, job: Job) -> Run:
        theirs, ours = Pipe(duplex=False)
        assignment = Assignment(job.id, job.lease_epoch, self._device.name, self._threads)
        process = forkserver.Process(
            target=trainer.main, args=(assignment, self._settings, theirs), name=job.id
        )
        process.start()
        theirs.close()
        return Run(job, process, ours)

    def _heartbeat(self, run: Run) -> None:
        """Renew the lease; what the user wants comes back with it."""
        try:
            self._beat("draining" if self._stopping.is_set() else "busy", run.job.id)
            with self._database.transaction() as session:
                desired = jobs.renew(
                    session, run.job.id, run.job.lease_epoch, self._settings.lease
                )
        except Fenced:
            run.deadline = 0.0
            return
        except Unreachable as error:
            # Training goes on: a late renewal is as good while nobody else has the job.
            log.warning("%s is not renewed: %s", run.job.id, error.orig)
            if time.monotonic() - run.renewed > PATIENCE_SECONDS:
                run.deadline = 0.0
            return
        run.renewed = time.monotonic()
        if desired == "cancel":
            run.tell("cancel", CANCEL_SECONDS)
        elif desired == "pause" or desired == "stop":
            run.tell(desired)

    def _conclude(self, run: Run) -> None:
        """Give the job back unless its trainer has ended it, or lost it to another."""
        job, code = run.job, run.process.exitcode
        meant = bool(run.told & {"drain", "cancel"})
        delay = 0.0 if meant else jobs.backoff(job.attempt) * random.uniform(0.8, 1.2)

        def give_back() -> str:
            with self._database.transaction() as session:
                return jobs.release(
                    session,
                    job.id,
                    job.lease_epoch,
                    charge=not meant,
                    delay=delay,
                    reason=None if meant else explain(code),
                )

        try:
            patience = GOODBYE_SECONDS if self._stopping.is_set() else PATIENCE_SECONDS
            status = persist(give_back, patience)
            log.warning("%s ended with %s; it is %s now", job.id, code, status)
        except Fenced:
            log.info("%s has ended", job.id)
        except Unreachable as error:
            log.warning("%s is left to its lease: %s", job.id, error.orig)

    def _beat(self, status: str, busy: str | None = None) -> None:
        self._next_beat = time.monotonic() + self._settings.heartbeat
        with self._database.transaction() as session:
            workers.beat(
                session,
                self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self._device.name,
                device_name=self._device.model,
                memory_bytes=self._device.memory_bytes,
                memory_free_bytes=devices.memory_free(self._device),
                queues=list(self._queues),
                slots=1,
                busy_job_id=busy,
                status=status,
            )

    def _say_goodbye(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.gone(session, self.id)
        except Unreachable as error:
            log.warning("left without a word: %s", error.orig)


def explain(code: int | None) -> dict[str, str]:
    """What a trainer died of, told so that a user can act on it."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may be short of memory" if name == "SIGKILL" else ""
        message = f"The training process was killed by {name}{hint}."
        return {"code": "killed", "signal": name, "message": message}
    if code == trainer.Exit.UNREACHABLE:
        return {"code": "unreachable", "message": "The database could not be reached any more."}
    return {"code": "crashed", "message": f"The training process ended with status {code}."}
