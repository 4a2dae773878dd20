"""Whatever is killed, a job ends as it should: real workers, real signals."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import update
from sqlalchemy.orm import Session

from store import events, jobs, metrics, workers
from store.session import Database
from store.tables import Dataset, Job
from tests.worker.crew import Worker, children, gone, until
from tests.worker.shop import Shop, rows, shop_in

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.2}
SECONDS = {"epochs": 250, "batch_size": 16}
HOURS = {"epochs": 100_000, "batch_size": 16}


class Crew:
    """A data set, and a worker that is replaced when it was killed."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.dataset: Dataset = shop.upload(TABLE, rows())
        self._workers: list[Worker] = []

    @property
    def worker(self) -> Worker:
        if not self._workers or not self._workers[-1].alive:
            self._workers.append(Worker(self.shop))
        return self._workers[-1]

    def running(self, training: dict[str, Any]) -> Job:
        """A job that has its first checkpoint and is being trained."""
        _ = self.worker
        job = self.shop.submit(self.dataset, SMALL, training)
        until(lambda: self.shop.act(events_of, job.id, "checkpoint"), "a checkpoint", self.worker)
        return job

    def until(self, job: Job, *statuses: str) -> float:
        is_there = lambda: self.shop.job(job).status in statuses  # noqa: E731
        return until(is_there, f"job is {statuses}, not {self.shop.job(job).status}", self.worker)

    def undisturbed(self, training: dict[str, Any]) -> tuple[str, object]:
        """The weights and the curve of the same training without any worker."""
        job = self.shop.submit(self.dataset, SMALL, training, queue="by hand")
        claimed = self.shop.act(jobs.claim, "hand", ["by hand"], 600.0, "wrk_hand")
        assert claimed.id == job.id
        self.shop.work(claimed)
        return self.learned(job)

    def learned(self, job: Job) -> tuple[str, object]:
        curve = self.shop.act(metrics.curve, job.id, ["validation/accuracy", "train/loss"])
        return self.shop.last(job).weights_blob, curve

    def end(self) -> None:
        for worker in self._workers:
            worker.end()


def last_reason(crew: Crew, job: Job) -> dict[str, Any]:
    """Why the job was queued again."""
    told = [e for e in crew.shop.act(events_of, job.id, "status") if e["status"] == "queued"]
    reason: dict[str, Any] = told[-1]["reason"]
    return reason


def events_of(session: Session, job_id: str, type: str) -> list[dict[str, Any]]:
    rows = events.page(session, job_id, limit=10_000).rows
    return [row.data for row in rows if row.type == type]


@pytest.fixture(scope="module")
def crew(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with shop_in(tmp_path_factory.mktemp("crew"), _sqlite_template) as shop:
        crew = Crew(shop)
        try:
            yield crew
        finally:
            crew.end()


def test_a_job_is_claimed_and_done_without_any_message(crew: Crew) -> None:
    _ = crew.worker
    job = crew.shop.submit(crew.dataset, SMALL, {"epochs": 2})
    crew.until(job, "succeeded", "failed")
    job = crew.shop.job(job)
    assert (job.status, job.attempt) == ("succeeded", 1), job.error
    assert job.worker_id in {row.id for row in crew.shop.act(workers.all)}


def test_a_running_job_is_cancelled_within_seconds(crew: Crew) -> None:
    job = crew.running(HOURS)
    crew.shop.act(jobs.cancel, crew.shop.project, job.id)
    assert jobs.shown_status(crew.shop.job(job)) in ("cancelling", "cancelled")
    assert crew.until(job, "cancelled") < 15
    assert crew.shop.job(job).model_version is None


def test_a_job_whose_trainer_is_killed_goes_on_and_loses_nothing(crew: Crew) -> None:
    job = crew.running(SECONDS)
    (trainer,) = crew.worker.trainers
    os.kill(trainer, signal.SIGKILL)
    until(lambda: gone(trainer), "the trainer is gone")
    crew.until(job, "succeeded", "failed")
    reason = last_reason(crew, job)
    assert (reason["code"], reason["signal"]) == ("killed", "SIGKILL")
    assert 2**26 < reason["memory_bytes"] < 2**34
    mebibytes = f"{reason['memory_bytes'] / 2**20:,.0f} MiB"
    assert reason["message"] == (
        f"The training process was killed by SIGKILL while it used {mebibytes}; the machine may be short "
        "of memory."
    )
    assert crew.shop.job(job).claims == 2
    assert crew.learned(job) == crew.undisturbed(SECONDS)


def test_a_job_outlives_the_process_that_trainers_are_forked_from(crew: Crew) -> None:
    job = crew.running(HOURS)
    (trainer,) = crew.worker.trainers
    parent = next(pid for pid in children(crew.worker.pid) if trainer in children(pid))
    os.kill(parent, signal.SIGKILL)
    until(lambda: gone(trainer), "the trainer is gone with its parent")
    step = crew.shop.last(job).step
    until(lambda: crew.shop.last(job).step > step, "it goes on", crew.worker)
    crew.shop.act(jobs.cancel, crew.shop.project, job.id)
    crew.until(job, "cancelled")


def test_a_trainer_that_does_not_listen_is_killed_and_its_job_cancelled(crew: Crew) -> None:
    job = crew.running(HOURS)
    (trainer,) = crew.worker.trainers
    os.kill(trainer, signal.SIGSTOP)
    crew.shop.act(jobs.cancel, crew.shop.project, job.id)
    crew.until(job, "cancelled")
    until(lambda: gone(trainer), "the trainer is gone")


def test_a_job_of_higher_priority_gets_the_device_at_once_and_the_lower_one_ends_the_same(
    crew: Crew,
) -> None:
    low = crew.running(SECONDS)
    high = crew.shop.submit(crew.dataset, SMALL, {"epochs": 2}, priority=1)
    crew.until(high, "succeeded", "failed")
    assert crew.shop.job(low).status != "succeeded", "it was too short to be preempted"
    assert last_reason(crew, low)["code"] == "preempted"
    crew.until(low, "succeeded", "failed")
    row = crew.shop.job(low)
    assert (row.claims, row.attempt) == (2, 1)
    assert crew.learned(low) == crew.undisturbed(SECONDS)


def test_a_job_whose_every_run_is_killed_fails_with_what_was_seen(crew: Crew) -> None:
    job = crew.running(HOURS)
    with crew.shop.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job.id).values(max_attempts=1))
    (trainer,) = crew.worker.trainers
    time.sleep(1.0)  # so that its memory was looked at
    os.kill(trainer, signal.SIGSEGV)
    crew.until(job, "failed")
    error = crew.shop.job(job).error or {}
    assert (error["code"], error["cause"], error["signal"]) == ("poison", "killed", "SIGSEGV")
    assert error["memory_bytes"] > 2**26


def test_a_paused_job_frees_the_device_and_goes_on_later(crew: Crew) -> None:
    job = crew.running(HOURS)
    crew.shop.act(jobs.pause, crew.shop.project, job.id)
    crew.until(job, "paused")
    step = crew.shop.last(job).step
    until(lambda: not crew.worker.trainers, "the device is free", crew.worker)
    crew.shop.act(jobs.resume, crew.shop.project, job.id)
    until(lambda: crew.shop.last(job).step > step, "it goes on", crew.worker)
    crew.shop.act(jobs.stop, crew.shop.project, job.id)
    crew.until(job, "succeeded")


def test_a_job_whose_worker_is_killed_is_finished_by_another_one(crew: Crew) -> None:
    job = crew.running(SECONDS)
    killed, (trainer,) = crew.worker, crew.worker.trainers
    killed.send(signal.SIGKILL)
    killed.wait()
    assert until(lambda: gone(trainer), "the trainer is gone") < 10
    assert crew.shop.job(job).status == "running"
    assert crew.worker is not killed
    crew.until(job, "succeeded", "failed")
    assert crew.shop.job(job).claims == 2
    assert crew.learned(job) == crew.undisturbed(SECONDS)


def test_a_worker_told_to_stop_saves_its_job_and_leaves(crew: Crew) -> None:
    job, told = crew.running(HOURS), crew.worker
    worker_id = crew.shop.job(job).worker_id
    told.send(signal.SIGTERM)
    began = time.monotonic()
    assert told.wait() == 0, told.log
    assert time.monotonic() - began < 25
    left = crew.shop.job(job)
    assert (left.status, left.attempt) == ("queued", 0)
    # Not merely the last one on the clock: the step at which it was interrupted.
    assert left.progress["step"] == crew.shop.last(job).step
    assert worker_id not in {row.id for row in crew.shop.act(workers.all)}
    crew.shop.act(jobs.cancel, crew.shop.project, job.id)


def test_a_trainer_without_a_sign_of_life_is_ended_and_its_job_goes_on(small_shop: Shop) -> None:
    worker = Worker(small_shop, STALL_SECONDS="4")
    try:
        job = small_shop.submit(small_shop.upload(TABLE, rows()), SMALL, HOURS)
        until(lambda: small_shop.act(events_of, job.id, "checkpoint"), "a checkpoint", worker)
        (stuck,) = worker.trainers
        os.kill(stuck, signal.SIGSTOP)
        assert until(lambda: gone(stuck), "the trainer is gone", worker) > 2
        step = small_shop.last(job).step
        until(lambda: small_shop.last(job).step > step, "it goes on", worker)
        told = [e for e in small_shop.act(events_of, job.id, "status") if "reason" in e]
        assert [event["reason"]["code"] for event in told] == ["stalled"]
        assert told[0]["reason"]["message"] == "The training showed no sign of life for 4 s."
    finally:
        worker.end()


@pytest.mark.slow
def test_memory_that_really_runs_out_is_saved_by_smaller_pieces(small_shop: Shop) -> None:
    """One step of the whole batch needs several times 256 MiB for activations."""
    wide = {"name": "mlp", "layers": 1, "width": 4096, "dropout": 0.0, "norm": "none"}
    job = small_shop.submit(
        small_shop.upload(TABLE, rows(30_000)), wide, {"epochs": 1, "batch_size": 16_384}
    )
    worker = Worker(small_shop, MEMORY_BYTES=str(1 << 30))
    try:
        ended = lambda: small_shop.job(job).status in ("succeeded", "failed")  # noqa: E731
        until(ended, "the job has ended", worker)
        row = small_shop.job(job)
        assert row.status == "succeeded", row.error
        assert 2 <= row.spec["training"]["micro_batches"] <= 64
        told = [e for e in small_shop.act(events_of, job.id, "status") if "reason" in e]
        assert {event["reason"]["code"] for event in told} == {"out_of_memory"}
    finally:
        worker.end()


@pytest.fixture
def remote(postgres_database: Database, postgres_database_url: str, tmp_path: Path) -> Shop:
    return Shop(postgres_database, postgres_database_url, tmp_path)


def test_a_message_starts_a_job_long_before_the_next_look(remote: Shop, redis_url: str) -> None:
    rare = {"POLL_SECONDS": "60", "HEARTBEAT_SECONDS": "60", "LEASE_SECONDS": "120"}
    worker = Worker(remote, BROKER_URL=redis_url, **rare)
    try:
        until(lambda: "ready" in worker.log, "connected to the broker", worker)
        job = remote.submit(remote.upload(TABLE, rows()), SMALL, {"epochs": 1})
        wake(redis_url, "cpu")
        until(lambda: remote.job(job).status == "succeeded", "the job is done", worker)
        assert latency(remote.job(job)) < 15
    finally:
        worker.end()


def test_bytes_that_are_no_message_end_neither_the_worker_nor_its_listening(
    remote: Shop, redis_url: str
) -> None:
    rare = {"POLL_SECONDS": "60", "HEARTBEAT_SECONDS": "60", "LEASE_SECONDS": "120"}
    worker = Worker(remote, BROKER_URL=redis_url, **rare)
    try:
        until(lambda: "ready" in worker.log, "connected to the broker", worker)
        with redis.Redis.from_url(redis_url) as client:
            client.lpush("cpu", b"\xff\xfegarbage", b"{}", b'{"body": 1}')
        until(lambda: worker.log.count("ready") >= 2, "it listens again", worker)
        job = remote.submit(remote.upload(TABLE, rows()), SMALL, {"epochs": 1})
        while remote.job(job).status == "queued":
            wake(redis_url, "cpu")
            time.sleep(0.5)
        until(lambda: remote.job(job).status == "succeeded", "the job is done", worker)
        assert latency(remote.job(job)) < 30
    finally:
        worker.end()


def wake(redis_url: str, queue: str) -> None:
    """As the API does."""
    with Celery("test", broker=redis_url, set_as_current=False) as client:
        client.send_task("wake", queue=queue, expires=30, retry=False)


def latency(job: Job) -> float:
    assert job.started_at is not None
    return (job.started_at - job.created_at).total_seconds()
