"""Any order of submissions, claims, losses, wishes and late writes leaves the jobs as a model says."""

from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from store import checkpoints, events, jobs
from store.errors import Conflict
from store.tables import TERMINAL, Checkpoint, Job, Model
from tests.store.world import TTL, World

MAX_ATTEMPTS = 2
MOST_JOBS = 3
"""Few, so that much happens to each."""
INDEX = st.integers(0, 30)


@dataclass
class Expected:
    """What a job should be like."""

    priority: int
    order: int
    status: str = "queued"
    desired: str | None = None
    epoch: int = 0
    attempt: int = 0
    step: int | None = None
    delayed: bool = False
    expired: bool = False

    def leave(self, status: str) -> None:
        self.status, self.expired = status, False
        if not (status == "queued" and self.desired == "stop"):
            self.desired = None
        if status == "cancelled":
            self.step = None

    def let_go(self, *, charge: bool, delayed: bool) -> None:
        if self.desired == "cancel":
            self.leave("cancelled")
        elif self.desired == "stop" and self.step is not None:
            self.leave("succeeded")
        elif self.desired != "pause" and charge and self.attempt >= MAX_ATTEMPTS:
            self.leave("failed")
        else:
            self.attempt -= not charge
            self.delayed = delayed
            self.leave("paused" if self.desired == "pause" else "queued")


class JobMachine(RuleBasedStateMachine):
    """Users, workers, the reaper, and workers that wake up after their lease was lost."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.jobs: dict[str, Expected] = {}
        self.leases: list[Job] = []

    @initialize()
    def empty(self) -> None:
        with self.world.database.transaction() as session:
            session.execute(delete(Model))
            session.execute(delete(Checkpoint))
            session.execute(delete(Job))
        for priority in range(MOST_JOBS):
            self.submit(priority)
            self.claim()

    def unfinished(self) -> int:
        return sum(job.status not in TERMINAL for job in self.jobs.values())

    @precondition(lambda self: self.unfinished() < MOST_JOBS)
    @rule(priority=st.integers(0, 2))
    def submit(self, priority: int) -> None:
        job = self.world.submit(priority=priority, max_attempts=MAX_ATTEMPTS)
        self.jobs[job.id] = Expected(priority, order=len(self.jobs))

    @rule()
    def claim(self) -> None:
        ready = [
            (-job.priority, job.order, id)
            for id, job in self.jobs.items()
            if job.status == "queued" and not job.delayed
        ]
        taken = self.world.claim()
        assert (taken and taken.id) == (min(ready)[2] if ready else None)
        if taken is not None:
            job = self.jobs[taken.id]
            job.status, job.epoch, job.attempt = "running", job.epoch + 1, job.attempt + 1
            self.leases.append(taken)

    @precondition(lambda self: self.leases)
    @rule(which=INDEX)
    def renew(self, which: int) -> None:
        lease, job, live = self.lease(which)
        assert self.world.fenced(jobs.renew, lease, TTL) is not live
        if live:
            job.expired = False

    @precondition(lambda self: self.leases)
    @rule(which=INDEX, further=st.booleans(), is_best=st.booleans())
    def save(self, which: int, further: bool, is_best: bool) -> None:
        lease, job, live = self.lease(which)
        step = (job.step or 0) + further
        saved = not self.world.fenced(
            lambda session, job_id, epoch: checkpoints.publish(
                session,
                job_id,
                epoch,
                step=step,
                epoch=0,
                metrics={},
                value=None,
                is_best=is_best,
                weights_blob=self.world.blob,
                codec_blob=self.world.blob,
                state_blob=None,
                state={},
                spec={},
            ),
            lease,
        )
        assert saved is live
        if live:
            if job.step is None or step > job.step:
                job.attempt = 1
            job.step = step

    @precondition(lambda self: self.leases)
    @rule(which=INDEX)
    def record(self, which: int) -> None:
        lease, _, live = self.lease(which)
        lines, points = [("info", "x")], [(1, 1, {"loss": 1.0})]
        assert self.world.fenced(jobs.record, lease, points=points, lines=lines) is not live

    @precondition(lambda self: self.leases)
    @rule(which=INDEX, status=st.sampled_from(TERMINAL))
    def finish(self, which: int, status: str) -> None:
        lease, job, live = self.lease(which)
        repeated = (job.epoch, job.status) == (lease.lease_epoch, status)
        if live and status == "succeeded" and job.step is None:
            return
        assert self.world.fenced(jobs.finish, lease, status) is not (live or repeated)
        if live:
            job.leave(status)

    @precondition(lambda self: self.leases)
    @rule(which=INDEX, charge=st.booleans(), delay=st.sampled_from([0.0, 3600.0]))
    def release(self, which: int, charge: bool, delay: float) -> None:
        lease, job, live = self.lease(which)
        assert self.world.fenced(jobs.release, lease, charge=charge, delay=delay) is not live
        if live:
            job.let_go(charge=charge, delayed=delay > 0)

    @precondition(lambda self: self.leases)
    @rule(which=INDEX)
    def go_silent(self, which: int) -> None:
        lease, job, live = self.lease(which)
        if live:
            self.world.lose(lease)
            job.expired = True

    @rule()
    def reap(self) -> None:
        lost = {id for id, job in self.jobs.items() if job.status == "running" and job.expired}
        assert set(self.world.act(jobs.reap)) == lost
        for id in lost:
            job = self.jobs[id]
            job.let_go(charge=True, delayed=jobs.backoff(job.attempt) > 0)

    @rule()
    def wait(self) -> None:
        self.world.hurry()
        for job in self.jobs.values():
            job.delayed = False

    @rule(late=st.sampled_from(["renew", "save", "record", "finish", "release"]), data=st.data())
    def wake_up_late(self, late: str, data: st.DataObject) -> None:
        """A worker stops for long, another one takes its job and maybe ends it, then the first goes on."""
        running = [id for id, job in self.jobs.items() if job.status == "running"]
        if not running:
            return
        id = data.draw(st.sampled_from(running))
        stale = self.newest(id)
        self.go_silent(self.which(stale))
        self.reap()
        self.wait()
        for _ in range(MOST_JOBS):
            self.claim()
        end = data.draw(st.sampled_from([None, *TERMINAL]))
        if end is not None:
            self.finish(self.which(self.newest(id)), end)
        options: dict[str, Any] = {
            "save": {"further": True, "is_best": True},
            "finish": {"status": end or "failed"},
            "release": {"charge": True, "delay": 0.0},
        }
        getattr(self, late)(self.which(stale), **options.get(late, {}))

    @precondition(lambda self: self.jobs)
    @rule(which=INDEX, wish=st.sampled_from(["cancel", "stop", "pause", "resume"]))
    def ask(self, which: int, wish: str) -> None:
        id = list(self.jobs)[which % len(self.jobs)]
        job, function = self.jobs[id], getattr(jobs, wish)
        legal = self.legal(job, wish)
        try:
            self.world.act(function, self.world.project, id)
        except Conflict:
            assert not legal
            return
        assert legal
        if wish == "resume":
            self.resumed(job)
        elif job.status == "running":
            job.desired = wish
        elif wish != "pause" or job.status == "queued":
            ends = {"cancel": "cancelled", "stop": "succeeded", "pause": "paused"}
            job.desired = None
            job.leave(ends[wish])

    def legal(self, job: Expected, wish: str) -> bool:
        if job.status in TERMINAL:
            return False
        if wish == "resume":
            return job.status == "paused" or (job.status == "running" and job.desired == "pause")
        if job.status == "running":
            return wish == "cancel" or job.desired != "cancel"
        return wish != "stop" or job.step is not None

    def resumed(self, job: Expected) -> None:
        if job.status == "running":
            job.desired = None
        else:
            job.attempt, job.delayed = 0, False
            job.leave("queued")

    def newest(self, id: str) -> Job:
        return next(lease for lease in reversed(self.leases) if lease.id == id)

    def which(self, lease: Job) -> int:
        """The number by which the rules know a lease."""
        return len(self.leases) - 1 - self.leases.index(lease)

    def lease(self, which: int) -> tuple[Job, Expected, bool]:
        """A lease given before, newest first, its job, and whether it is still the one that runs it."""
        lease = self.leases[-1 - which % len(self.leases)]
        job = self.jobs[lease.id]
        return lease, job, job.status == "running" and job.epoch == lease.lease_epoch

    @invariant()
    def every_row_is_as_expected(self) -> None:
        for id, job in self.jobs.items():
            row = self.world.act(jobs.load, id)
            found = (row.status, row.desired, row.lease_epoch, row.attempt)
            assert found == (job.status, job.desired, job.epoch, job.attempt)
            last = self.world.act(checkpoints.last, id)
            assert (last and last.step) == job.step

    def teardown(self) -> None:
        for id, job in self.jobs.items():
            told: list[Any] = self.world.act(events.page, id, 0, 1000).rows
            assert [event.seq for event in told] == list(range(1, len(told) + 1))
            ends = [event for event in told if event.data.get("status") in TERMINAL]
            assert len(ends) == (job.status in TERMINAL)


def test_jobs_keep_their_promises_whatever_happens_in_whatever_order(world: World) -> None:
    postgres = world.database.dialect == "postgresql"
    run_state_machine_as_test(
        lambda: JobMachine(world),  # type: ignore[arg-type]
        settings=settings(
            max_examples=10 if postgres else 30,
            stateful_step_count=30,
            deadline=None,
            database=None,
            # Shrinking a failure runs the database for minutes; thirty steps are read faster.
            phases=[Phase.generate],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
