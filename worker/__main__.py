"""The worker: a light process that takes messages, with a supervisor for each device beside it."""

import logging
import os
import signal
import sys
import threading
import warnings
from threading import Event, Thread
from typing import Any

from celery.platforms import SecurityWarning
from celery.signals import worker_shutting_down

from store.session import Database, connect
from worker import app, devices, doorbell, runs
from worker.reconciler import Reconciler
from worker.settings import WorkerSettings, read_settings
from worker.supervisor import Supervisor

log = logging.getLogger("worker")

LISTEN_AGAIN_SECONDS = 1.0


def main() -> int:
    """Serve until a signal; running jobs are saved and given back. Returns an exit status."""
    settings = read_settings()
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        found = devices.find(settings.devices, settings.slots)
    except LookupError as error:
        sys.stderr.write(f"modelyard worker: MODELYARD_DEVICES: {error.args[0]}\n")
        return 2
    os.umask(0o077)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    runs.warm_up()
    return serve(settings, connect(settings.database), found)


def serve(settings: WorkerSettings, database: Database, found: list[devices.Device]) -> int:
    """Supervise every device, reconcile, and listen for messages until a signal."""
    stopping = Event()
    threads = settings.threads or max(1, devices.cores() // len(found))
    queues = settings.queues or _queues(found)
    gpus = devices.Pool([d.name for d in found if d.name != devices.CPU])
    supervisors = [
        Supervisor(
            settings,
            database,
            device,
            # On the CPU, what a job can have several of are the threads of its slot.
            gpus if device.name != devices.CPU else devices.Pool([devices.CPU] * threads),
            queues,
            threads,
            stopping,
        )
        for device in found
    ]
    app.bells[:] = [supervisor.bell for supervisor in supervisors]

    def stop(**_: Any) -> None:
        stopping.set()
        app.ring()

    worker_shutting_down.connect(stop)
    failed = _end_with_any_thread()
    if not settings.has_broker:
        answering = (settings.doorbell,)
        Thread(target=doorbell.answer, args=answering, name="doorbell", daemon=True).start()
    reconciler = Reconciler(settings, database)
    Thread(target=reconciler.run, args=(stopping,), name="reconciler", daemon=True).start()
    for supervisor in supervisors:
        supervisor.start()
    log.info("serving %s on %s", ", ".join(queues), ", ".join(d.name for d in found))
    try:
        _listen(settings, queues, stopping)
    finally:
        stop()
        for supervisor in supervisors:
            supervisor.join()
    return 1 if failed.is_set() else 0


def _queues(found: list[devices.Device]) -> tuple[str, ...]:
    return ("cpu",) if all(d.name == devices.CPU for d in found) else ("gpu", "cpu")


def _listen(settings: WorkerSettings, queues: tuple[str, ...], stopping: Event) -> None:
    """Take messages until a signal. The pool is of threads: a message rings bells of this process."""
    # As whom it runs is the operator's choice; a message carries nothing that could be misused.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    celery = app.configure(settings)
    while not stopping.is_set():
        celery.Worker(
            pool="threads",
            concurrency=1,
            queues=queues,
            quiet=True,
            loglevel=settings.log_level,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        ).start()
        # Bytes that are no message at all end the consumer, and are to end nothing else.
        stopping.wait(LISTEN_AGAIN_SECONDS)


def _end_with_any_thread() -> Event:
    """Have the process stop, and not live on by half, when one of its threads fails; whether one did."""
    failed = Event()

    def fail(error: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(error)
        failed.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.excepthook = fail
    return failed


if __name__ == "__main__":
    sys.exit(main())
