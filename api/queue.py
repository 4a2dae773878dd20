"""Wakes workers in other processes: best effort, since they look at the database by themselves."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from celery import Celery

from api.settings import ApiSettings

log = logging.getLogger(__name__)

_EXPIRES_SECONDS = 30
_TIMEOUT_SECONDS = 1


class Bell:
    """Rings for a queue from a thread of its own; rings for the same queue that wait are one.

    Without a broker it rings for the worker of this machine, through a named pipe.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._celery = _client(settings.broker_url) if settings.has_broker else None
        self._doorbell = settings.doorbell
        self._thread = ThreadPoolExecutor(1, "bell")
        self._waiting: set[str] = set()

    def ring(self, queue: str) -> None:
        """Tell a worker of `queue` to look for jobs. Never waits, never raises."""
        if self._celery is None:
            self._ring_here()
        elif queue not in self._waiting:
            self._waiting.add(queue)
            self._thread.submit(self._send, self._celery, queue)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._celery is not None:
            self._celery.close()

    def _ring_here(self) -> None:
        with suppress(OSError):  # such as: nobody listens, or a thousand rings wait
            pipe = os.open(self._doorbell, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, b"!")
            finally:
                os.close(pipe)

    def _send(self, celery: Celery, queue: str) -> None:
        self._waiting.discard(queue)
        try:
            celery.send_task("wake", queue=queue, expires=_EXPIRES_SECONDS, retry=False)
        except Exception as error:
            log.warning("no wake-up for queue %s: %s", queue, error)


def _client(broker_url: str) -> Celery:
    """A Celery application that only sends, and gives up soon."""
    celery = Celery("api", broker=broker_url, set_as_current=False)
    celery.conf.update(
        task_ignore_result=True,
        broker_connection_timeout=_TIMEOUT_SECONDS,
        broker_connection_max_retries=0,
        broker_transport_options={
            "socket_timeout": _TIMEOUT_SECONDS,
            "socket_connect_timeout": _TIMEOUT_SECONDS,
            "max_retries": 0,
        },
    )
    return celery
