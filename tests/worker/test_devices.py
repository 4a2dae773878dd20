"""Jobs of several devices: real workers whose processes are killed, and devices that are lent."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from torch import Tensor

import worker.group
import worker.supervisor
from models.base import Batch, Learner
from store import jobs, queues, workers
from store.tables import Job, JobLog
from tests.worker.crew import Worker, children, gone, until
from tests.worker.shop import Shop, rows, shop_in
from tests.worker.test_supervisor import TABLE, events_of
from worker import elastic, trainer
from worker.devices import Device, Pool
from worker.settings import WorkerSettings
from worker.sharding import Sharded
from worker.supervisor import Supervisor
from worker.trainer import Assignment, Exit

SMALL = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.2}
SECONDS = {"epochs": 60, "batch_size": 16}
HOURS = {"epochs": 100_000, "batch_size": 16}


class Yard:
    """A data set, and a worker with two threads for a job, which is submitted with `usual` options."""

    def __init__(self, shop: Shop, **usual: Any) -> None:
        self.shop, self.dataset, self._usual = shop, shop.upload(TABLE, rows()), usual
        self.worker = Worker(shop, THREADS="2")

    def submit(self, training: dict[str, Any], devices: int = 2, **options: Any) -> Job:
        asked = {"devices": devices, **self._usual, **options}
        return self.shop.submit(self.dataset, SMALL, training, **asked)

    def running(self, training: dict[str, Any]) -> tuple[Job, int, list[int]]:
        """A job that has its first checkpoint and is being trained, its trainer and its ranks."""
        job = self.submit(training)
        self.until(lambda: self.shop.act(events_of, job.id, "checkpoint"), "a checkpoint")
        (agent,) = self.worker.trainers
        return job, agent, self.ranks(agent)

    def ranks(self, agent: int) -> list[int]:
        found: list[int] = []

        def are_there() -> bool:
            found[:] = [pid for pid in children(agent) if not gone(pid)]
            return len(found) == 2

        self.until(are_there, "two ranks")
        return sorted(found)

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(condition, what, self.worker)

    def becomes(self, job: Job, *statuses: str) -> Job:
        self.until(lambda: self.shop.job(job).status in statuses, f"the job is {statuses}")
        return self.shop.job(job)

    def learned(self, job: Job) -> tuple[str, str]:
        return self.shop.best(job).weights_blob, self.shop.last(job).weights_blob

    def log(self, job: Job) -> list[str]:
        query = select(JobLog.line).where(JobLog.job_id == job.id).order_by(JobLog.seq)
        with self.shop.database.transaction(read_only=True) as session:
            return list(session.scalars(query))


@pytest.fixture(scope="module")
def yard(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with shop_in(tmp_path_factory.mktemp("yard"), _sqlite_template) as shop:
        yard = Yard(shop)
        try:
            yield yard
        finally:
            yard.worker.end()


@pytest.fixture(scope="module")
def undisturbed(yard: Yard) -> tuple[str, str]:
    """The weights of a training on two devices that was left alone."""
    job = yard.becomes(yard.submit(SECONDS), "succeeded", "failed")
    assert job.status == "succeeded", job.error
    assert (job.claims, job.attempt) == (1, 1)
    return yard.learned(job)


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_rank_is_survived_and_nothing_is_lost(
    which: int, yard: Yard, undisturbed: tuple[str, str]
) -> None:
    job, agent, ranks = yard.running(SECONDS)
    os.kill(ranks[which], signal.SIGKILL)
    yard.until(lambda: gone(ranks[1 - which]), "the other one is ended as well")
    ended = yard.becomes(job, "succeeded", "failed")
    assert ended.status == "succeeded", ended.error
    assert ended.claims == 1, "it was the same run"
    assert any("restart 1 of this run" in line for line in yard.log(job)), yard.log(job)
    assert yard.learned(job) == undisturbed
    yard.until(lambda: gone(agent), "the trainer has left")


def test_a_killed_trainer_leaves_no_rank_and_its_job_goes_on(
    yard: Yard, undisturbed: tuple[str, str]
) -> None:
    job, agent, ranks = yard.running(SECONDS)
    os.kill(agent, signal.SIGKILL)
    yard.until(lambda: all(gone(pid) for pid in ranks), "the ranks are gone with it")
    ended = yard.becomes(job, "succeeded", "failed")
    assert (ended.status, ended.claims) == ("succeeded", 2), ended.error
    told = [e for e in yard.shop.act(events_of, job.id, "status") if "reason" in e]
    assert [event["reason"]["code"] for event in told] == ["killed"]
    assert told[0]["reason"]["memory_bytes"] > 2**27, "of all its processes"
    assert yard.learned(job) == undisturbed


def test_a_pause_frees_the_devices_and_resume_goes_on_with_the_same_bits(
    yard: Yard, undisturbed: tuple[str, str]
) -> None:
    job, agent, ranks = yard.running(SECONDS)
    yard.shop.act(jobs.pause, yard.shop.project, job.id)
    yard.becomes(job, "paused")
    yard.until(lambda: all(gone(pid) for pid in [agent, *ranks]), "every process has left")
    yard.shop.act(jobs.resume, yard.shop.project, job.id)
    assert yard.becomes(job, "succeeded", "failed").status == "succeeded"
    assert yard.learned(job) == undisturbed


def test_a_job_of_higher_priority_takes_all_devices_of_one(yard: Yard) -> None:
    low, agent, ranks = yard.running(HOURS)
    high = yard.submit({"epochs": 2}, devices=1, priority=1)
    assert yard.becomes(high, "succeeded", "failed").status == "succeeded"
    assert all(gone(pid) for pid in [agent, *ranks])
    yard.shop.act(jobs.cancel, yard.shop.project, low.id)
    yard.becomes(low, "cancelled")


def test_the_processes_of_a_job_listen_on_the_loopback_interface_alone(yard: Yard) -> None:
    job, agent, ranks = yard.running(HOURS)
    found = [c for pid in [agent, *ranks] for c in psutil.Process(pid).net_connections()]
    addresses = {connection.laddr.ip for connection in found if connection.laddr}
    assert addresses, "they are connected"
    assert addresses <= {"127.0.0.1", "::1"}
    yard.shop.act(jobs.cancel, yard.shop.project, job.id)
    yard.becomes(job, "cancelled")


def test_a_cancel_ends_every_process(yard: Yard) -> None:
    job, agent, ranks = yard.running(HOURS)
    began = time.monotonic()
    yard.shop.act(jobs.cancel, yard.shop.project, job.id)
    yard.becomes(job, "cancelled")
    assert time.monotonic() - began < worker.supervisor.CANCEL_SECONDS, "it obeyed by itself"
    yard.until(lambda: all(gone(pid) for pid in [agent, *ranks]), "every process has left")
    assert not list(yard.shop.settings.cache_dir.glob(f".ranks-{job.id}-*"))


def test_a_job_of_more_devices_than_there_are_waits_and_lets_others_pass(yard: Yard) -> None:
    job, other = yard.submit(SECONDS, devices=3), yard.submit({"epochs": 1}, devices=1)
    assert yard.becomes(other, "succeeded", "failed").status == "succeeded"
    assert yard.shop.job(job).status == "queued"
    yard.shop.act(jobs.cancel, yard.shop.project, job.id)


def test_a_killed_worker_leaves_no_process_of_its_jobs(small_shop: Shop) -> None:
    yard = Yard(small_shop)
    try:
        _, agent, ranks = yard.running(HOURS)
        yard.worker.send(signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in [agent, *ranks]), "all are gone")
    finally:
        yard.worker.end()


# What goes wrong inside the processes

Troubled = Callable[[str], tuple[Job, int | None]]

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(["worker.warm"])


def _live(
    assignment: Assignment, settings: WorkerSettings, commands: Connection, fault: str
) -> None:
    """A trainer in whose ranks something goes wrong."""
    with patch.object(*_FAULTS[fault]):
        trainer.main(assignment, settings, commands)


def _fails_to_share(self: worker.group.Together, *rest: Any, fault: Callable[[], None]) -> Batch:
    if self.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        fault()
    return _share(self, *rest)


def _fails_to_predict(self: Sharded, *rest: Any, rank: int) -> Tensor:
    if self.rank == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _has_no_memory()
    return _outputs(self, *rest)


def _has_no_memory() -> None:
    raise MemoryError


def _is_wrong(*_: Any) -> None:
    raise RuntimeError("shapes do not fit")


def _dies(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL if os.environ["RANK"] == "1" else 0)


_share, _step = worker.group.Together.share, Learner.train_step
_outputs = Sharded._outputs
_FAULTS: dict[str, tuple[Any, str, Any]] = {
    "memory": (
        worker.group.Together,
        "share",
        lambda *given: _fails_to_share(*given, fault=_has_no_memory),
    ),
    "memory of rank 0 while judging in parts": (
        Sharded,
        "_outputs",
        partialmethod(_fails_to_predict, rank=0),
    ),
    "memory of rank 1 while judging in parts": (
        Sharded,
        "_outputs",
        partialmethod(_fails_to_predict, rank=1),
    ),
    "mistake": (Learner, "train_step", _is_wrong),
    "one mistake": (
        worker.group.Together,
        "share",
        lambda *given: _fails_to_share(*given, fault=_is_wrong),
    ),
    "death": (elastic, "join", _dies),
    "infinite": (Learner, "train_step", lambda *given: _step(*given) * float("inf")),
}


@pytest.fixture
def troubled(small_shop: Shop) -> Troubled:
    """Run a job on two devices in which something goes wrong; its row, and how its trainer ended."""
    dataset = small_shop.upload(TABLE, rows())

    def run(fault: str) -> tuple[Job, int | None]:
        job = small_shop.submit(dataset, SMALL, {"epochs": 3, "batch_size": 16})
        claimed = small_shop.claimed(job)
        assignment = Assignment(
            job.id, claimed.lease_epoch, "cpu", 1, ("cpu",), "in parts" in fault
        )
        theirs, ours = Pipe()
        process = _FORKED.Process(
            target=_live, args=(assignment, small_shop.settings, theirs, fault)
        )
        process.start()
        theirs.close()
        process.join(60)
        ours.close()
        return small_shop.job(job), process.exitcode

    return run


@pytest.mark.parametrize("fault", [fault for fault in _FAULTS if fault.startswith("memory")])
def test_memory_that_runs_out_in_any_process_is_saved_by_smaller_pieces(
    fault: str, troubled: Troubled
) -> None:
    job, status = troubled(fault)
    assert (job.status, status) == ("queued", Exit.DONE)
    assert job.spec["training"]["micro_batches"] == 2


def test_a_mistake_that_all_processes_make_fails_the_job_at_once(
    troubled: Troubled,
) -> None:
    job, status = troubled("mistake")
    assert (job.status, status) == ("failed", Exit.DONE)
    assert job.error is not None
    assert "shapes do not fit" in job.error["traceback"]


def test_a_process_that_fails_alone_is_started_again(
    troubled: Troubled,
) -> None:
    job, status = troubled("one mistake")
    assert (job.status, status) == ("succeeded", Exit.DONE), job.error


def test_a_training_that_diverges_is_said_to(
    troubled: Troubled,
) -> None:
    job, status = troubled("infinite")
    assert (job.status, status) == ("failed", Exit.DONE)
    assert (job.error or {})["code"] == "diverged"


def test_a_process_that_always_dies_ends_the_trainer_by_the_same_signal(
    troubled: Troubled,
) -> None:
    job, status = troubled("death")
    assert (job.status, status) == ("running", -signal.SIGKILL)


# Who has which device


class Errand:
    """A run that lasts until it is told to end."""

    started: dict[str, tuple[tuple[str, ...], "Errand"]]

    def __init__(self, job: Job, devices: tuple[str, ...], threads: int, _: WorkerSettings) -> None:
        self.job, self.renewed, self.was_ended = job, time.monotonic(), True
        self.over = Event()
        Errand.started[job.id] = (devices, self)

    def ends_within(self, seconds: float) -> bool:
        return self.over.wait(seconds)

    def tell(self, *_: Any) -> None:
        self.over.set()

    def cause(self) -> dict[str, str]:
        return {"code": "x", "message": "x"}


def test_a_job_has_the_devices_of_idle_supervisors_and_is_waited_for(shop: Shop) -> None:
    """Three GPUs: what starts, where, while a job of two finds only one free."""
    settings = shop.settings.model_copy(update={"poll_seconds": 0.05, "heartbeat_seconds": 0.2})
    names = ("cuda:0", "cuda:1", "cuda:2")
    pool, stopping, Errand.started = Pool(names), Event(), {}
    dataset = shop.upload(TABLE, rows())
    submit = partial(shop.submit, dataset, SMALL, SECONDS)

    def end(job: Job) -> None:
        errand = Errand.started[job.id][1]
        shop.act(jobs.finish, job.id, errand.job.lease_epoch, "cancelled")
        errand.over.set()

    with (
        patch.object(worker.supervisor, "Run", Errand),
        patch.object(worker.supervisor, "wait_until_warm", lambda: None),
        patch("worker.devices.memory_free", lambda device: None),
    ):
        crew = [
            Supervisor(settings, shop.database, Device(n, "GPU", 1), pool, ("cpu",), 1, stopping)
            for n in names
        ]
        for supervisor in crew:
            supervisor.start()
        try:
            one, two = submit(), submit()
            until(lambda: {one.id, two.id} <= Errand.started.keys(), "two jobs run")
            large, small = submit(devices=2), submit()
            time.sleep(0.5)
            assert Errand.started.keys() == {one.id, two.id}, "one device is kept for the large job"
            assert "when a worker has 2 devices free" in shop.act(_why, large.id)
            end(one)
            until(lambda: large.id in Errand.started, "the large job runs")
            devices = Errand.started[large.id][0]
            assert len(set(devices)) == 2
            assert Errand.started[two.id][0][0] not in devices
            until(lambda: shop.act(_slots) == {1: 2, 0: 1}, "one of them is shown as lent")
            assert small.id not in Errand.started
            end(large)
            until(lambda: small.id in Errand.started, "the small job runs at last")
        finally:
            stopping.set()
            for supervisor in crew:
                supervisor.bell.set()
                supervisor.join()


def _why(session: Session, job_id: str) -> str:
    return queues.waiting(session, jobs.load(session, job_id))


def _slots(session: Session) -> dict[int, int]:
    found = [row.slots for row in workers.all(session)]
    return {slots: found.count(slots) for slots in found}
