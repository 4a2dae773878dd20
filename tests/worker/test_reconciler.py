"""What the reconciler does about lost leases, sleeping workers and an absent database."""

from collections.abc import Callable
from threading import Event
from typing import Any
from unittest.mock import patch

import pytest
import redis
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from store import blobs, jobs, projects, webhooks, workers
from store.session import now
from store.tables import Blob, Job, WebhookSecret
from tests.worker.shop import Shop, rows
from worker import app, reconciler
from worker.reconciler import Reconciler


@pytest.fixture
def queued(shop: Shop) -> Callable[[int], list[Job]]:
    dataset = shop.upload("tabular-classification", rows())
    return lambda count: [shop.submit(dataset) for _ in range(count)]


def expire(shop: Shop, job: Job) -> None:
    with shop.database.transaction() as session:
        past = now(session).replace(year=2000)
        session.execute(update(Job).where(Job.id == job.id).values(lease_until=past))


def test_a_job_with_a_lost_lease_is_queued_again(shop: Shop, queued: Any) -> None:
    (job,) = queued(1)
    shop.claimed(job)
    Reconciler(shop.settings, shop.database).look()
    assert shop.job(job).status == "running"
    expire(shop, job)
    Reconciler(shop.settings, shop.database).look()
    assert shop.job(job).status == "queued"


def test_nobody_loses_a_lease_for_an_outage_of_the_database(shop: Shop, queued: Any) -> None:
    (job,) = queued(1)
    shop.claimed(job)
    expire(shop, job)
    found, stopping, looks = Reconciler(shop.settings, shop.database), Event(), 0
    reap = jobs.reap

    def troubled(session: Any) -> list[str]:
        raise OperationalError("SELECT", None, Exception("the database is away"))

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            stopping.set()
        with patch.object(jobs, "reap", troubled if looks == 1 else reap):
            Reconciler.look(found)

    with patch.object(reconciler, "ROUND_SECONDS", 0.0), patch.object(found, "look", look):
        found.run(stopping)
    assert looks == 3
    assert shop.job(job).status == "running", "the holder has a whole lease to come back"


def beat(shop: Shop, worker_id: str, **facts: Any) -> None:
    usual = {
        "host": "h",
        "pid": 1,
        "device": "cpu",
        "device_name": "c",
        "memory_bytes": 1,
        "queues": ["cpu"],
        "slots": 1,
        "status": "idle",
    }
    shop.act(workers.beat, worker_id, **(usual | facts))


@pytest.mark.parametrize(("free", "waiting", "sent"), [(0, 3, 0), (2, 3, 2), (3, 1, 1)])
def test_no_more_messages_are_sent_than_there_are_free_slots_and_jobs(
    shop: Shop, queued: Any, redis_url: str, free: int, waiting: int, sent: int
) -> None:
    queued(waiting)
    for place in range(free):
        beat(shop, f"wrk_{place}")
    settings = shop.settings.model_copy(update={"broker_url": redis_url})
    app.configure(settings)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        Reconciler(settings, shop.database).look()
        app.app.close()
        assert client.llen("cpu") == sent


def test_a_broker_that_is_away_stops_nothing(shop: Shop, queued: Any) -> None:
    (job,) = queued(1)
    beat(shop, "wrk_a")
    settings = shop.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    app.configure(settings)
    Reconciler(settings, shop.database).look()
    app.app.close()
    assert shop.job(job).status == "queued"


def test_bytes_that_nothing_refers_to_are_swept_when_they_are_old(shop: Shop) -> None:
    old, young = (blobs.put_bytes(shop.database, data) for data in (b"old", b"young"))
    with shop.database.transaction() as session:
        past = now(session).replace(year=2000)
        session.execute(update(Blob).where(Blob.id == old).values(touched_at=past))
    with patch.object(reconciler, "SWEEP_SECONDS", 0.0):
        Reconciler(shop.settings, shop.database).look()
    with shop.database.transaction() as session:
        assert session.get(Blob, old) is None
        assert session.get(Blob, young) is not None


def test_what_webhooks_need_no_more_is_swept(shop: Shop) -> None:
    with shop.database.transaction() as session:
        project, past = projects.ensure(session, "default").id, now(session).replace(year=2000)
        old, new = webhooks.secret(session, project).id, webhooks.rotate(session, project).id
        session.execute(
            update(WebhookSecret).where(WebhookSecret.id == old).values(expires_at=past)
        )
    with patch.object(reconciler, "SWEEP_SECONDS", 0.0):
        Reconciler(shop.settings, shop.database).look()
    with shop.database.transaction() as session:
        assert session.get(WebhookSecret, old) is None
        assert session.get(WebhookSecret, new) is not None
