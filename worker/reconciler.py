"""Takes jobs back from workers that died, looks after sweeps, wakes free workers, and sweeps up.

Any number may run at once.
"""

import logging
import random
import signal
import time
from collections.abc import Callable
from threading import Event
from types import FrameType

from sqlalchemy.orm import Session

from store import blobs, jobs, queues, replies, webhooks, workers
from store.session import Database, connect
from worker import app
from worker.keeper import Keeper
from worker.outages import Unreachable
from worker.settings import WorkerSettings, read_settings

log = logging.getLogger(__name__)

ROUND_SECONDS = 2.0
"""Between two looks: with the rest of a lost lease, how long a job waits for another worker."""
SWEEP_SECONDS = 60.0
UNUSED_SECONDS = 600.0
"""How long bytes may lie unused: old checkpoints are many, and an upload is soon referred to."""


class Reconciler:
    """One look after another at what went wrong meanwhile."""

    def __init__(self, settings: WorkerSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._keeper = Keeper(settings, database)
        self._reap_from = 0.0
        self._next_sweep = time.monotonic() + SWEEP_SECONDS

    def run(self, stopping: Event) -> None:
        """Look around every few seconds until `stopping` is set."""
        while not stopping.wait(ROUND_SECONDS * random.uniform(0.8, 1.2)):
            try:
                self.look()
            except Unreachable as error:
                log.warning("nothing to reconcile with: %s", error.orig)
                # Nobody could renew a lease meanwhile, so nobody is to lose it for that.
                self._reap_from = time.monotonic() + self._settings.lease

    def look(self) -> None:
        """Reap, look after sweeps, wake and, now and then, sweep up. Raises Unreachable."""
        if time.monotonic() >= self._reap_from:
            self._reap()
        self._keeper.look()
        if self._settings.has_broker:
            self._wake()
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            self._sweep()

    def _reap(self) -> None:
        with self._database.transaction() as session:
            for job_id in jobs.reap(session):
                log.warning("%s was lost by its worker", job_id)

    def _wake(self) -> None:
        """As many messages as there are both jobs and room: a dead fleet never floods the broker."""
        for queue, number in self._hints().items():
            for _ in range(number):
                if not _sent(queue):
                    return

    def _hints(self) -> dict[str, int]:
        with self._database.transaction(read_only=True) as session:
            return {
                queue: min(depth["queued"], queues.ready_count(session, [queue]), free)
                for queue, depth in queues.depths(session).items()
                if (free := workers.free_slots(session, queue=queue))
            }

    def _sweep(self) -> None:
        while self._with(lambda session: blobs.sweep(session, UNUSED_SECONDS)):
            pass
        self._with(replies.sweep)
        self._with(webhooks.sweep)
        self._with(workers.sweep)

    def _with(self, action: Callable[[Session], int | None]) -> int | None:
        with self._database.transaction() as session:
            return action(session)


def _sent(queue: str) -> bool:
    try:
        app.send_wake(queue)
    except Exception as error:  # each transport raises its own; a message is never needed
        log.warning("no wake-up for queue %s: %s", queue, error)
        return False
    return True


def main() -> None:
    """Reconcile until a signal."""
    settings, stopping = read_settings(), Event()
    logging.basicConfig(level=settings.log_level)
    app.configure(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    Reconciler(settings, connect(settings.database)).run(stopping)


if __name__ == "__main__":
    main()
