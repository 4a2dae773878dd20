"""Finds sweeps that somebody should look after, and starts a process that does.

What looks after them loads the tasks, and with them torch; it is forked from what trainers are forked
from, which has all of it, and is gone again in a second.
"""

import logging
import signal
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess

from store import sweeps
from store.session import Database, connect
from worker import runs
from worker.outages import Unreachable
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

HOLD_SECONDS = 60.0
"""How long others leave a sweep to the keeper that took it: it may have been killed."""


class Keeper:
    """Looks after the sweeps of all projects, beside any number of others."""

    def __init__(self, settings: WorkerSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._process: BaseProcess | None = None

    def look(self) -> None:
        """Start looking after what nobody looks after. Raises Unreachable."""
        if self._process is not None:
            if self._process.is_alive():
                return
            self._process.close()
            self._process = None
        with self._database.transaction(read_only=True) as session:
            due = sweeps.due(session)
        taken = [sweep_id for sweep_id in due if self._take(sweep_id)]
        if taken:
            self._process = runs.fork("keeper", tend, self._settings, taken)

    def _take(self, sweep_id: str) -> bool:
        with self._database.transaction() as session:
            return sweeps.take(session, sweep_id, HOLD_SECONDS)


def tend(settings: WorkerSettings, sweep_ids: Sequence[str]) -> None:
    """Look after these sweeps, in a process of its own, which the kernel ends when its time is over."""
    signal.alarm(int(HOLD_SECONDS))
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    database = connect(settings.database)
    for sweep_id in sweep_ids:
        try:
            # By name: the worker imports this module, and must not load what knows tasks.
            import_module("worker.sweeps").tend(database, sweep_id)
        except Unreachable as error:
            log.warning("%s is left to another keeper: %s", sweep_id, error.orig)
        except Exception:
            log.exception("%s could not be looked after", sweep_id)
    database.dispose()
    signal.alarm(0)
