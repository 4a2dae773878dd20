"""What can happen to the database and to the broker."""

from functools import partial
from random import Random
from typing import TypeVar

import psycopg
import redis
from celery import Celery

from tests.chaos.cast import Cast, Hurt, Nobody
from tests.servers import Postgres, Redis

Server = TypeVar("Server", Postgres, Redis)


def flush_redis(cast: Cast, draw: Random) -> Hurt:
    with redis.from_url(_alive(cast.redis).url) as client:
        client.flushall()
    return Hurt("redis")


def kill_redis(cast: Cast, draw: Random) -> Hurt:
    """It comes back empty."""
    _alive(cast.redis).kill()
    return Hurt("redis", ((draw.uniform(0, 10), cast.redis.start),))


def flood_redis(cast: Cast, draw: Random) -> Hurt:
    """With wake-ups that nobody meant, with some that are none, and with bytes that are no message."""
    with redis.from_url(_alive(cast.redis).url) as client:
        client.lpush("cpu", b"\xff\xfe{", b"{}")
    with Celery("flood", broker=_alive(cast.redis).url, set_as_current=False) as celery:
        send = partial(celery.send_task, queue="cpu", retry=False)
        for _ in range(draw.randrange(50, 200)):
            send("wake", expires=30)
        send("wake", args=["job_forged"])
        send("wake", serializer="pickle")
        send("worker.jobs.run", kwargs={"job_id": "job_forged"})
    return Hurt("redis")


def crash_postgres(cast: Cast, draw: Random) -> Hurt:
    _alive(cast.postgres).stop()
    return Hurt("postgres", ((draw.uniform(0, 6), cast.postgres.start),))


def kill_postgres(cast: Cast, draw: Random) -> Hurt:
    _alive(cast.postgres).kill()
    return Hurt("postgres", ((draw.uniform(0, 6), cast.postgres.start),))


def cut_every_connection(cast: Cast, draw: Random) -> Hurt:
    with psycopg.connect(_alive(cast.postgres).url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    return Hurt("postgres")


def _alive(server: Server) -> Server:
    """Raises Nobody unless it is."""
    if not server.alive:
        raise Nobody
    return server
