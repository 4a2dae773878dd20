"""One per device: claims a job, starts its trainer, keeps the lease, passes on what the user asked for."""

import logging
import os
import random
import socket
import time
from threading import Event, Thread

from sqlalchemy.orm import Session

from store import ids, jobs, queues, workers
from store.errors import Fenced
from store.session import Database
from store.tables import Job
from worker import devices
from worker.devices import Device
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
        """It stops when `stopping` is set and its `bell` was rung; trainers use so many `threads`."""
        super().__init__(name=f"supervisor of {device.name}", daemon=True)
        self.id = ids.new("wrk")
        self.bell = Event()
        self._settings, self._database, self._stopping = settings, database, stopping
        self._device, self._queues, self._threads = device, queues, threads
        self._next_beat = 0.0

    def run(self) -> None:
        wait_until_warm()
        while not self._stopping.is_set():
            try:
                job = self._claim()
            except Unreachable as error:
                log.warning("no jobs while the database does not answer: %s", error.orig)
                self._stopping.wait(1.0)
                continue
            if job is None:
                self.bell.wait(min(self._settings.poll, self._settings.heartbeat))
                self.bell.clear()
            else:
                self._supervise(job)
        self._say_goodbye()

    def _claim(self) -> Job | None:
        if time.monotonic() >= self._next_beat:
            with self._database.transaction() as session:
                self._beat(session, "idle")
        # Most looks find nothing, and reading does not stand in the way of those who write.
        with self._database.transaction(read_only=True) as session:
            if not queues.any_ready(session, self._queues):
                return None
        owner = f"{self.id}/{ids.new('claim')}"
        return persist(lambda: self._take(owner))

    def _take(self, owner: str) -> Job | None:
        with self._database.transaction() as session:
            return jobs.claim(session, owner, self._queues, self._settings.lease, self.id)

    def _supervise(self, job: Job) -> None:
        """From claim to end of one run."""
        log.info("%s starts on %s, attempt %d", job.id, self._device.name, job.attempt)
        run = Run(job, self._device.name, self._threads, self._settings)
        self._next_beat = 0.0
        while not run.ends_within(LOOK_SECONDS):
            if self._stopping.is_set():
                run.tell("drain", self._settings.drain_seconds)
            if time.monotonic() >= self._next_beat:
                self._heartbeat(run)
        self._give_back(run)
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
            log.warning("left without a good-bye: %s", error.orig)
