"""Wakes workers in other processes: best effort, since they look at the database by themselves."""

import logging
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from api.settings import ApiSettings

log = logging.getLogger(__name__)

_EXPIRES_SECONDS = 30
_TIMEOUT_SECONDS = 1


class Bell:
    """Rings for a queue from a thread of its own; rings for the same queue that wait are one."""

    def __init__(self, settings: ApiSettings) -> None:
        self._celery = _client(settings.broker_url) if settings.has_broker else None
        self._thread = ThreadPoolExecutor(1, "bell")
        self._waiting: set[str] = set()

    def ring(self, queue: str) -> None:
        """Tell a worker of `queue` to look for jobs. Never waits, never raises."""
        if self._celery is not None and queue not in self._waiting:
            self._waiting.add(queue)
            self._thread.submit(self._send, self._celery, queue)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._celery is not None:
            self._celery.close()

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
