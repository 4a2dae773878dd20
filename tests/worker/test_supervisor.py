"""Whatever is killed, a job ends as it should: real workers, real signals."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from store import events, jobs, metrics, workers
from store.session import Database
from store.tables import Dataset, Job
from tests.conftest import opened
from tests.worker.crew import Worker, children, gone, until
from tests.worker.shop import Shop, rows

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


def events_of(session: Session, job_id: str, type: str) -> list[dict[str, Any]]:
    rows = events.page(session, job_id, limit=10_000).rows
    return [row.data for row in rows if row.type == type]


@pytest.fixture(scope="module")
def crew(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    folder = tmp_path_factory.mktemp("crew")
    url = f"sqlite:///{folder / 'store.sqlite'}"
    (folder / "store.sqlite").write_bytes(_sqlite_template.read_bytes())
    with opened(url) as database:
        crew = Crew(Shop(database, url, folder))
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
    given_back = [e for e in crew.shop.act(events_of, job.id, "status") if e["status"] == "queued"]
    assert given_back[-1]["reason"] == {
        "code": "killed",
        "signal": "SIGKILL",
        "message": "The training process was killed by SIGKILL; the machine may be short of memory.",
    }
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


def wake(redis_url: str, queue: str) -> None:
    """As the API does."""
    with Celery("test", broker=redis_url, set_as_current=False) as client:
        client.send_task("wake", queue=queue, expires=30, retry=False)


def latency(job: Job) -> float:
    assert job.started_at is not None
    return (job.started_at - job.created_at).total_seconds()
