"""One per device: claims a job, starts its trainer, keeps the lease, passes on what the user asked for."""

import logging
import os
import random
import socket
import time
from threading import Event, Thread
from typing import NamedTuple

from sqlalchemy.orm import Session

from store import ids, jobs, queues, workers
from store.errors import Fenced
from store.session import Database
from store.tables import Job
from worker import devices
from worker.devices import CPU, Device, Pool
from worker.outages import PATIENCE_SECONDS, Unreachable, persist
from worker.runs import Run, wait_until_warm
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often a running trainer is looked after; its end is noticed at once."""
CANCEL_SECONDS = 10.0
"""Time for a trainer to obey a cancel; it may be in a long step."""
GOODBYE_SECONDS = 5.0
"""How long a worker that is to stop waits for the database; the lease runs out by itself."""


class Claimed(NamedTuple):
    """A job, and the devices it is to have."""

    job: Job
    devices: tuple[str, ...]


class Supervisor(Thread):
    """Runs one job after the other on a device until it is told to stop.

    A job of several devices has those of idle supervisors beside it, which rest meanwhile.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        database: Database,
        device: Device,
        pool: Pool,
        queues: tuple[str, ...],
        threads: int,
        stopping: Event,
    ) -> None:
        """It stops when `stopping` is set and its `bell` was rung; trainers use so many `threads`.

        The device is the next one of `pool`.
        """
        super().__init__(name=f"supervisor of {device.name}", daemon=True)
        self.id = ids.new("wrk")
        self.bell = Event()
        self._settings, self._database, self._stopping = settings, database, stopping
        self._device, self._queues, self._threads = device, queues, threads
        self._pool, self._place = pool, pool.join(self.bell)
        self._lent_to: str | None = None
        self._next_beat = 0.0

    def run(self) -> None:
        wait_until_warm()
        while not self._stopping.is_set():
            try:
                claimed = self._claim()
            except Unreachable as error:
                log.warning("no jobs while the database does not answer: %s", error.orig)
                self._stopping.wait(1.0)
                continue
            if claimed is None:
                self.bell.wait(min(self._settings.poll, self._settings.heartbeat))
                self.bell.clear()
            else:
                self._supervise(*claimed)
        self._say_goodbye()

    def _claim(self) -> Claimed | None:
        lent_to = self._pool.job(self._place)
        if lent_to != self._lent_to or time.monotonic() >= self._next_beat:
            self._lent_to = lent_to
            with self._database.transaction() as session:
                self._beat(session, "busy" if lent_to else "idle", lent_to)
        if lent_to:
            return None
        # Most looks find nothing, and reading does not stand in the way of those who write.
        with self._database.transaction(read_only=True) as session:
            if not queues.any_ready(session, self._queues, self._pool.size):
                return None
        owner = f"{self.id}/{ids.new('claim')}"
        with self._pool.claiming:
            free = self._pool.free()
            if self._pool.job(self._place) is not None:
                return None
            job = persist(lambda: self._take(owner, free))
            if job is None:
                return None
            return Claimed(job, self._pool.take(self._place, job.devices, job.id))

    def _take(self, owner: str, free: int) -> Job | None:
        with self._database.transaction() as session:
            return jobs.claim(
                session,
                owner,
                self._queues,
                self._settings.lease,
                self.id,
                free=free,
                devices=self._pool.size,
            )

    def _supervise(self, job: Job, devices: tuple[str, ...]) -> None:
        """From claim to end of one run."""
        log.info("%s starts on %s, attempt %d", job.id, ", ".join(devices), job.attempt)
        # On the CPU, processes share the threads of their slot.
        shared = len(devices) if self._device.name == CPU else 1
        run = Run(job, devices, max(1, self._threads // shared), self._settings)
        self._next_beat = 0.0
        while not run.ends_within(LOOK_SECONDS):
            if self._stopping.is_set():
                run.tell("drain", self._settings.drain_seconds)
            if time.monotonic() >= self._next_beat:
                self._heartbeat(run)
        self._give_back(run)
        self._pool.give_back(job.id)
        self._next_beat = 0.0

    def _heartbeat(self, run: Run) -> None:
        try:
            wish = self._renew(run.job)
        except Fenced:
            run.kill()
        except Unreachable as error:
            # Training goes on: a late renewal is as good while nobody else has the job.
            log.warning("the lease of %s is not renewed: %s", run.job.id, error.orig)
            if time.monotonic() - run.renewed > PATIENCE_SECONDS:
                run.kill()
        else:
            run.renewed = time.monotonic()
            self._pass_on(wish, run)

    def _pass_on(self, wish: jobs.Wish | None, run: Run) -> None:
        match wish:
            case "cancel":
                run.tell("cancel", CANCEL_SECONDS)
            case "preempt":
                run.tell("preempt", self._settings.drain_seconds)
            case "pause" | "stop":
                run.tell(wish)

    def _renew(self, job: Job) -> jobs.Wish | None:
        """Keep the lease; what the job is to do comes back with it. Raises Fenced."""
        status = "draining" if self._stopping.is_set() else "busy"
        with self._database.transaction() as session:
            self._beat(session, status, job.id)
            return jobs.renew(session, job.id, job.lease_epoch, self._settings.lease)

    def _give_back(self, run: Run) -> None:
        """Release the job, unless its trainer has ended it or somebody else has it."""
        patience = GOODBYE_SECONDS if self._stopping.is_set() else PATIENCE_SECONDS
        try:
            status = persist(lambda: self._release(run), patience)
            log.warning("%s is %s: %s", run.job.id, status, run.cause()["message"])
            wait_until_warm()  # what trainers are forked from may be what died
        except Fenced:
            log.info("%s is done with", run.job.id)
        except Unreachable as error:
            log.warning("%s is left to its lease: %s", run.job.id, error.orig)

    def _release(self, run: Run) -> str:
        job, charge = run.job, not run.was_ended
        # Jobs that failed together should not all come back together.
        delay = jobs.backoff(job.attempt) * random.uniform(0.8, 1.2) if charge else 0.0
        reason = run.cause() if charge else None
        with self._database.transaction() as session:
            return jobs.release(
                session, job.id, job.lease_epoch, charge=charge, delay=delay, reason=reason
            )

    def _beat(self, session: Session, status: str, busy: str | None = None) -> None:
        self._next_beat = time.monotonic() + self._settings.heartbeat
        workers.beat(
            session,
            self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device.name,
            device_name=self._device.model,
            memory_bytes=self._device.memory_bytes,
            memory_free_bytes=devices.memory_free(self._device.name),
            queues=list(self._queues),
            slots=0 if self._lent_to else 1,
            devices=self._pool.size,
            busy_job_id=busy,
            status=status,
        )

    def _say_goodbye(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.gone(session, self.id)
        except Unreachable as error:
            log.warning("left without a good-bye: %s", error.orig)
