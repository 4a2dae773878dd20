"""The Celery application and its one task, which lasts milliseconds: a message only says "look".

Which job runs where is decided by the database alone, so that a message may be lost, doubled, late
or forged without harm.
"""

from threading import Event

from celery import Celery

from worker.settings import WorkerSettings

_TIMEOUT_SECONDS = 5
WAKE_EXPIRES_SECONDS = 30

app = Celery("worker", set_as_current=False)
bells: list[Event] = []
"""One for each supervisor of this process, which waits for it."""


@app.task(name="wake")  # type: ignore[untyped-decorator]
def wake() -> None:
    """Have every supervisor of this process look for a job."""
    ring()


def ring() -> None:
    for bell in bells:
        bell.set()


def configure(settings: WorkerSettings) -> Celery:
    """The application, ready to connect; it keeps no results, and nobody can control it from outside."""
    app.conf.update(
        broker_url=settings.broker_url if settings.has_broker else "memory://localhost",
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=_TIMEOUT_SECONDS,
        broker_pool_limit=2,
        broker_transport_options=_transport(settings),
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=False,
        task_ignore_result=True,
        task_publish_retry=False,
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
    )
    return app


def send_wake(queue: str) -> None:
    """Wake a worker of `queue`, which may be on another host. Raises when the broker cannot be reached."""
    app.send_task("wake", queue=queue, expires=WAKE_EXPIRES_SECONDS, retry=False)


def _transport(settings: WorkerSettings) -> dict[str, float]:
    if not settings.has_broker:
        return {}
    return {
        "socket_timeout": _TIMEOUT_SECONDS,
        "socket_connect_timeout": _TIMEOUT_SECONDS,
        "health_check_interval": 10,
    }
