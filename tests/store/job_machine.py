"""Users, workers, the reaper and a clock that jumps, in any order, beside a model of what should come of it."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, event, select

from store import jobs, metrics, workers
from store.errors import Conflict, Fenced, NotFound
from store.session import Database
from store.tables import TERMINAL, Checkpoint, Job, JobEvent, JobLog, MetricBlock, Model, Worker
from store.workers import SEEN_WITHIN_SECONDS
from tests.store.world import LONG_AGO, TTL, Clock, World

HOUR = 3600.0
BACKOFF = {1: 0.0, 2: 10.0, 3: 20.0}
MOST_JOBS = 7
"""Few, so that much happens to each."""
SERVED = {"ann": ["cpu"], "bob": ["gpu"], "eve": ["cpu", "gpu"]}
"""The workers, and the queues they serve."""

Act = tuple[str, dict[str, Any]]
"""A method of the machine, and its options."""
JUMPS = [1.0, 10.0, TTL, TTL + 1, HOUR, -10.0, -HOUR]
"""Less than a lease, just as long, longer, and back."""
ASKS: list[Act] = [("ask", {"wish": wish}) for wish in ("cancel", "stop", "pause", "resume")]
FORGET: Act = ("forget", {})
CHANGES_OF_MIND = [
    *("", "", "", "", "cancel", "stop", "stop", "pause", "pause resume", "pause resume"),
    *("cancel stop", "cancel pause", "stop pause", "stop cancel"),
]
WISHES: list[Act] = [*ASKS, FORGET, ("move", {"priority": 2})]
SAVES: list[Act] = [
    ("save", {"further": further, "is_best": is_best})
    for further, is_best in ((1, True), (1, False), (0, False))
]
AGAIN: Act = ("claim_again", {})
WRITES: list[Act] = [("renew", {}), ("record", {}), ("note", {}), *SAVES]
ENDS: list[Act] = [
    *(("finish", {"status": status}) for status in TERMINAL),
    *(("release", {"charge": charge, "delay": 10.0}) for charge in (True, False)),
    *(("lose", {"silence": silence}) for silence in (TTL, TTL + 1)),
]
WORKER = st.sampled_from(sorted(SERVED))
INDEX = st.integers(0, 30)
QUEUE = st.sampled_from(["cpu", "gpu"])
PRIORITY = st.integers(0, 2)
BEAT = st.tuples(st.sampled_from(["idle", "busy", "draining", "silent", "gone"]), st.integers(1, 2))
DEVICES = st.integers(1, 2)
MOSTLY_ONE = st.sampled_from([1, 1, 1, 1, 2])


def _act(name: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Act]:
    return st.tuples(st.just(name), st.fixed_dictionaries(options))


WHATEVER = st.one_of(
    _act("jump", seconds=st.sampled_from(JUMPS)),
    _act("all_go_on"),
    _act("reap"),
    _act(
        "submit",
        queue=QUEUE,
        priority=PRIORITY,
        max_attempts=st.integers(1, 3),
        start=st.none() | INDEX,
        devices=DEVICES,
    ),
    _act("a_user_wishes", which=INDEX, wish=st.sampled_from(WISHES)),
    _act("claim", worker=WORKER, free=DEVICES, devices=DEVICES),
    _act("beat", worker=WORKER, how=BEAT),
    _act("a_worker_writes", which=INDEX, act=st.sampled_from([*WRITES, *ENDS, AGAIN])),
    *(
        _act(
            "a_job_runs",
            worker=WORKER,
            max_attempts=st.integers(1, 3),
            writes=st.lists(st.sampled_from([*WRITES, AGAIN]), max_size=3),
            asks=st.sampled_from(CHANGES_OF_MIND),
            end=st.sampled_from(ENDS),
            then=st.lists(st.sampled_from([*ASKS, FORGET]), min_size=1, max_size=2),
        )
        for _ in range(2)
    ),
    _act(
        "a_worker_is_late",
        which=INDEX,
        silence=st.sampled_from([TTL + 1, HOUR]),
        saves=st.lists(st.sampled_from(SAVES), min_size=1, max_size=2),
        end=st.sampled_from(ENDS),
    ),
    _act(
        "devices_are_short",
        beats=st.tuples(*(st.sampled_from(["busy", "busy", "idle", "draining", "silent"]),) * 3),
        priorities=st.tuples(*(st.integers(0, 1),) * 3),
        newcomers=st.lists(st.tuples(QUEUE, st.integers(1, 2), MOSTLY_ONE), min_size=1, max_size=3),
        ask=st.sampled_from(["", "cancel", "stop", "pause"]),
        which=INDEX,
    ),
)


@dataclass
class Expected:
    """What a job should be like; fields that are columns have their names."""

    id: str
    queue: str
    priority: int
    max_attempts: int
    created_at: datetime
    available_at: datetime
    resume_checkpoint_id: str | None
    devices: int = 1
    status: str = "queued"
    desired: str | None = None
    attempt: int = 0
    lease_epoch: int = 0
    lease_owner: str | None = None
    lease_until: datetime | None = None
    worker_id: str | None = None
    progress: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, int] = field(default_factory=dict)
    model_version: int | None = None
    points: dict[int, int] = field(default_factory=dict)
    """Which lease wrote the metrics of a step."""
    lines: list[str] = field(default_factory=list)
    notes: list[int] = field(default_factory=list)
    ended: dict[str, Any] | None = None
    """The whole row as it was when it had just ended."""

    @property
    def place(self) -> tuple[int, datetime, str]:
        """Where in a queue; smaller comes first."""
        return -self.priority, self.created_at, self.id


@dataclass
class Saved:
    """What a checkpoint should be like."""

    job_id: str | None
    epoch: int
    step: int
    is_best: bool
    is_last: bool = True


@dataclass
class Seen:
    """What is known of a worker."""

    status: str
    slots: int
    started_at: datetime
    last_seen_at: datetime


COLUMNS = [each.name for each in fields(Expected) if each.name in Job.__table__.columns]
SAVED = [each.name for each in fields(Saved)]


class JobMachine(RuleBasedStateMachine):
    """One story; after each of its steps the rows are as the model says."""

    def __init__(self, world: World, clock: Clock) -> None:
        super().__init__()
        self.world, self.clock = world, clock
        self.latest = LONG_AGO
        self.jobs: dict[str, Expected] = {}
        self.saved: dict[str, Saved] = {}
        self.made_of: list[str] = []
        """The checkpoint of each model version."""
        self.workers: dict[str, Seen] = {}
        self.leases: list[Job] = []
        self.claims = 0

    # What happens

    @initialize()
    def begin(self) -> None:
        self.clock.set(LONG_AGO)
        with self.world.database.transaction() as session:
            for table in (Model, Checkpoint, Job, Worker):
                session.execute(delete(table))
        for rank, (worker, queues) in enumerate(SERVED.items()):
            self.beat(worker, ("idle", 1))
            # The second one starts from what the first one learned, and so on.
            self.submit(queues[0], rank, rank + 1, 0)
            self.claim(worker)
            if rank < 2:
                self.save(self.leases[-1], 1, True)

    # One rule, since Hypothesis leaves out some rules of every story.
    @rule(act=WHATEVER)
    def happens(self, act: Act) -> None:
        name, options = act
        getattr(self, name)(**options)

    def jump(self, seconds: float) -> None:
        self.clock.move(seconds)
        self.latest = max(self.latest, self.clock.now)

    def submit(
        self, queue: str, priority: int, max_attempts: int, start: int | None, devices: int = 1
    ) -> None:
        """A job, which may start from a checkpoint of another."""
        if len(self.unfinished()) == MOST_JOBS:
            return
        known = sorted(self.saved)
        given: dict[str, Any] = {
            "queue": queue,
            "priority": priority,
            "max_attempts": max_attempts,
            "devices": devices,
            "resume_checkpoint_id": None if start is None or not known else _one(known, start),
        }
        id = self.world.submit(**given).id
        now = self.clock.now
        self.jobs[id] = Expected(id, created_at=now, available_at=now, **given)

    def a_user_wishes(self, which: int, wish: Act) -> None:
        if self.present():
            self.do(wish, _one(self.present(), which))

    def claim(self, worker: str, free: int = 2, devices: int = 2) -> None:
        self.claims += 1
        self.take(f"{worker}/{self.claims}", worker, free, devices)

    def a_worker_writes(self, which: int, act: Act) -> None:
        """Under a lease given before, the newest first."""
        self.do(act, _one(self.leases[::-1], which))

    def a_job_runs(
        self,
        worker: str,
        max_attempts: int,
        writes: list[Act],
        asks: str,
        end: Act,
        then: list[Act],
    ) -> None:
        """From its claim to the end of its run."""
        if not self.ready():
            self.submit(SERVED[worker][0], 1, max_attempts, None)
        self.claim(worker)
        lease = self.leases[-1]
        job = self.jobs[lease.id]
        for write in writes:
            self.do(write, lease)
        for ask in asks.split():
            self.ask(job, ask)
        self.do(end, lease)
        for wish in then:
            self.do(wish, job)

    def a_worker_is_late(self, which: int, silence: float, saves: list[Act], end: Act) -> None:
        """It is given up, another one takes its job and ends it, and it goes on as if nothing had happened."""
        if not self.running():
            return
        job = _one(self.running(), which)
        lease = self.newest(job)
        self.lose(lease, silence)
        self.jump(BACKOFF[3])
        for _ in range(MOST_JOBS):
            self.claim("eve")
        self.wake_up(lease)
        for act in [*saves, end]:
            self.do(act, self.newest(job))
        self.end_all_ways(lease)

    def devices_are_short(
        self,
        beats: tuple[str, ...],
        priorities: tuple[int, ...],
        newcomers: list[tuple[str, int, int]],
        ask: str,
        which: int,
    ) -> None:
        """Better jobs come than those that run, and each holder hears whether it is to give its device up."""
        self.jump(TTL)
        for worker, beat in zip(SERVED, beats, strict=True):
            self.beat(worker, (beat, 1))
            if beat == "busy":
                self.claim(worker)
        for job, priority in zip(self.running(), priorities, strict=False):
            self.move(job, priority)
        for queue, priority, devices in newcomers:
            self.submit(queue, priority, 3, None, devices)
        if ask and self.running():
            self.ask(_one(self.running(), which), ask)
        self.all_renew()

    def all_go_on(self, but: Job | None = None) -> None:
        for worker, seen in list(self.workers.items()):
            if but is None or worker != but.worker_id:
                self.beat(worker, (seen.status, seen.slots))
        self.all_renew(but)

    def all_renew(self, but: Job | None = None) -> None:
        for job in self.running():
            if self.newest(job) is not but:
                self.renew(self.newest(job))

    def beat(self, worker: str, how: tuple[str, int]) -> None:
        """A sign of life, a good-bye or nothing."""
        status, slots = how
        if status == "silent":
            return
        if status == "gone":
            self.world.act(workers.gone, worker)
            self.workers.pop(worker, None)
            return
        facts = {"host": "h", "pid": 1, "device": "d", "device_name": "D", "memory_bytes": 1}
        shown = {"queues": SERVED[worker], "status": status, "slots": slots}
        self.world.act(workers.beat, worker, **facts, **shown)
        known = self.workers.get(worker)
        started = known.started_at if known else self.clock.now
        self.workers[worker] = Seen(status, slots, started, self.clock.now)

    def reap(self) -> None:
        now = self.clock.now
        lost = [job.id for job in self.running() if job.lease_until and job.lease_until < now]
        reaped = self.world.act(jobs.reap)
        assert sorted(reaped) == sorted(lost)
        for id in reaped:
            self.let_go(self.jobs[id], True, BACKOFF[self.jobs[id].attempt])

    # What users and workers do with one job

    def do(self, act: Act, whose: Expected | Job) -> None:
        name, options = act
        getattr(self, name)(whose, **options)

    def ask(self, job: Expected, wish: str) -> None:
        legal = self.legal(job, wish)
        assert self.granted(getattr(jobs, wish), job) is legal
        if not legal:
            return
        if job.status == "running":
            job.desired = None if wish == "resume" else wish
        elif wish == "resume":
            job.attempt, job.available_at = 0, self.clock.now
            self.leave(job, "queued")
        elif wish == "stop":
            self.succeed(job)
        elif wish == "cancel":
            self.leave(job, "cancelled")
        elif job.status == "queued":
            self.leave(job, "paused")

    def move(self, job: Expected, priority: int) -> None:
        legal = job.status not in (*TERMINAL, "deleted")
        assert self.granted(jobs.update, job, priority=priority) is legal
        if legal:
            job.priority = priority

    def forget(self, job: Expected) -> None:
        legal = job.status in TERMINAL
        if legal:
            self.told(job)
        assert self.granted(jobs.delete, job) is legal
        if legal:
            self.discard(lambda saved: saved.job_id == job.id)
            for saved in self.saved.values():
                saved.job_id = None if saved.job_id == job.id else saved.job_id
            job.status = "deleted"

    def claim_again(self, lease: Job) -> None:
        """As a worker does that never read the reply to COMMIT, however late."""
        assert lease.lease_owner is not None
        assert lease.worker_id is not None
        self.jump(1.0)
        self.take(lease.lease_owner, lease.worker_id)

    def take(self, owner: str, worker: str, free: int = 2, devices: int = 2) -> None:
        mine = [job for job in self.running() if job.lease_owner == owner]
        served = [job for job in self.ready() if job.queue in SERVED[worker]]
        able = [job for job in served if job.devices <= devices]
        job = next(iter(mine or able), None)
        if job and not mine and job.devices > free:
            job = None
        room = {"free": free, "devices": devices}
        taken = self.world.act(jobs.claim, owner, SERVED[worker], TTL, worker, **room)
        assert (taken and taken.id) == (job and job.id)
        if job is None:
            return
        if not mine:
            job.status, job.lease_owner, job.worker_id = "running", owner, worker
            job.lease_epoch += 1
            job.attempt += 1
            self.leases.append(taken)
        self.keep(job)

    def renew(self, lease: Job) -> None:
        job = self.jobs[lease.id]
        if not self.live(lease):
            assert self.world.fenced(jobs.renew, lease, TTL)
            return
        preempted = "preempt" if job.id in self.preempted() else None
        assert self.world.holder(jobs.renew, lease, TTL) == (job.desired or preempted)
        self.keep(job)

    def record(self, lease: Job) -> None:
        job, epoch, live = self.jobs[lease.id], lease.lease_epoch, self.live(lease)
        written = {
            "points": [(1, epoch, {"lease": epoch}), (epoch, epoch, {"lease": epoch})],
            "progress": {"lease": epoch},
            "lines": [("info", f"lease {epoch}")],
        }
        assert self.world.fenced(jobs.record, lease, **written) is not live
        if live:
            job.points |= {1: epoch, epoch: epoch}
            job.progress = {"lease": epoch}
            job.lines.append(f"lease {epoch}")

    def note(self, lease: Job) -> None:
        epoch, live = lease.lease_epoch, self.live(lease)
        assert self.world.fenced(jobs.note, lease, "note", {"lease": epoch}) is not live
        if live:
            self.jobs[lease.id].notes.append(epoch)

    def save(self, lease: Job, further: int, is_best: bool) -> None:
        job, epoch = self.jobs[lease.id], lease.lease_epoch
        mine = [saved for saved in self.saved.values() if saved.job_id == job.id]
        reached = next((saved.step for saved in mine if saved.is_last), None)
        step = (reached or 0) + further
        options: dict[str, Any] = {"epoch": epoch, "metrics": {"lease": epoch}}
        try:
            made = self.world.save(lease, step, is_best=is_best, **options)
        except Fenced:
            assert not self.live(lease)
            return
        assert self.live(lease)
        if reached is None or step > reached:
            job.attempt = 1
        for saved in mine:
            saved.is_last, saved.is_best = False, saved.is_best and not is_best
        self.saved[made.id] = Saved(job.id, epoch, step, is_best)
        self.discard(lambda saved: saved.job_id == job.id and not (saved.is_best or saved.is_last))
        if is_best:
            job.metrics = {"lease": epoch}

    def finish(self, lease: Job, status: str) -> None:
        job, live = self.jobs[lease.id], self.live(lease)
        repeated = (job.lease_epoch, job.status) == (lease.lease_epoch, status)
        if live and status == "succeeded" and self.chosen(job) is None:
            return
        error = {"code": "wrong", "message": "It failed."} if status == "failed" else None
        refused = self.world.fenced(jobs.finish, lease, status, error=error)
        assert refused is not (live or repeated)
        if live and status == "succeeded":
            self.succeed(job)
        elif live:
            self.leave(job, status)

    def release(self, lease: Job, charge: bool, delay: float) -> None:
        live = self.live(lease)
        assert self.world.fenced(jobs.release, lease, charge=charge, delay=delay) is not live
        if live:
            self.let_go(self.jobs[lease.id], charge, delay)

    def lose(self, lease: Job, silence: float) -> None:
        """Its worker says nothing for so many seconds, while the others go on."""
        self.jump(silence)
        self.all_go_on(but=lease)
        self.reap()

    def wake_up(self, lease: Job) -> None:
        """Its worker tries everything, as if no time had passed."""
        self.end_all_ways(lease)
        for act in WRITES:
            self.do(act, lease)

    def end_all_ways(self, lease: Job) -> None:
        for status in TERMINAL:
            self.finish(lease, status)
        self.release(lease, charge=True, delay=0.0)

    # What should come of it

    def legal(self, job: Expected, wish: str) -> bool:
        if job.status in (*TERMINAL, "deleted"):
            return False
        if wish == "resume":
            return job.status == "paused" or (job.status == "running" and job.desired == "pause")
        if job.status == "running":
            return wish == "cancel" or job.desired != "cancel"
        return wish != "stop" or self.chosen(job) is not None

    def keep(self, job: Expected) -> None:
        job.lease_until = self.clock.now + timedelta(seconds=TTL)

    def leave(self, job: Expected, status: str) -> None:
        job.status, job.lease_owner, job.lease_until = status, None, None
        if not (status == "queued" and job.desired == "stop"):
            job.desired = None
        if status == "cancelled":
            self.discard(lambda saved: saved.job_id == job.id)

    def let_go(self, job: Expected, charge: bool, delay: float) -> None:
        if job.desired == "cancel":
            self.leave(job, "cancelled")
        elif job.desired == "stop" and self.chosen(job) is not None:
            self.succeed(job)
        elif job.desired != "pause" and charge and job.attempt >= job.max_attempts:
            self.leave(job, "failed")
        else:
            job.attempt -= not charge
            job.available_at = self.clock.now + timedelta(seconds=delay)
            self.leave(job, "paused" if job.desired == "pause" else "queued")

    def succeed(self, job: Expected) -> None:
        chosen = self.chosen(job)
        assert chosen is not None
        self.made_of.append(chosen)
        job.model_version = len(self.made_of)
        self.leave(job, "succeeded")

    def chosen(self, job: Expected) -> str | None:
        """The job's best checkpoint, or its last."""
        mine = {id: saved for id, saved in self.saved.items() if saved.job_id == job.id}
        best = (id for id, saved in mine.items() if saved.is_best)
        return next(best, next((id for id, saved in mine.items() if saved.is_last), None))

    def discard(self, those: Callable[[Saved], bool]) -> None:
        needed = {job.resume_checkpoint_id for job in self.unfinished()} | set(self.made_of)
        for id, saved in list(self.saved.items()):
            if (those(saved) or saved.job_id is None) and id not in needed:
                del self.saved[id]

    def preempted(self) -> set[str]:
        """The running jobs that are to give their device up for a better one."""
        oldest = self.clock.now - timedelta(seconds=SEEN_WITHIN_SECONDS)
        places: list[tuple[str, Expected | None]] = []
        for name, seen in sorted(
            self.workers.items(), key=lambda item: (item[1].started_at, item[0])
        ):
            if seen.last_seen_at >= oldest and seen.status != "draining":
                held = [job for job in self.running() if job.worker_id == name and not job.desired]
                places += [(name, job) for job in held]
                places += [(name, None)] * (seen.slots - len(held))
        given = set()
        for ready in self.ready():
            if ready.devices > 1:
                continue
            able = [place for place in places if ready.queue in SERVED[place[0]]]
            free = [place for place in able if place[1] is None]
            lower = [job for _, job in able if job and job.priority < ready.priority]
            if free:
                places.remove(free[0])
            elif lower:
                last = max(lower, key=lambda job: job.place)
                places = [place for place in places if place[1] is not last]
                given.add(last.id)
        return given

    # Which

    def present(self) -> list[Expected]:
        return [job for job in self.jobs.values() if job.status != "deleted"]

    def unfinished(self) -> list[Expected]:
        return [job for job in self.present() if job.status not in TERMINAL]

    def running(self) -> list[Expected]:
        return [job for job in self.jobs.values() if job.status == "running"]

    def ready(self) -> list[Expected]:
        """Best first."""
        queued = [job for job in self.jobs.values() if job.status == "queued"]
        ready = [job for job in queued if job.available_at <= self.clock.now]
        return sorted(ready, key=lambda job: job.place)

    def newest(self, job: Expected) -> Job:
        return next(lease for lease in reversed(self.leases) if lease.id == job.id)

    def live(self, lease: Job) -> bool:
        """Whether it is still the lease that runs its job."""
        job = self.jobs[lease.id]
        return job.status == "running" and job.lease_epoch == lease.lease_epoch

    def granted(self, function: Any, job: Expected, **options: Any) -> bool:
        """Whether a user's wish is not refused."""
        try:
            self.world.act(function, self.world.project, job.id, **options)
        except (Conflict, NotFound):
            return False
        return True

    # What always holds

    @invariant()
    def every_row_is_as_expected(self) -> None:
        """Written by nobody but users, the reaper and whoever held the lease at that time."""
        with self.world.database.transaction(read_only=True) as session:
            found = {
                table: session.execute(select(table.__table__)).mappings().all()
                for table in (Job, Checkpoint)
            }
            measured = set(session.scalars(select(MetricBlock.job_id)))
            points = {
                (job_id, step): value
                for job_id in measured
                for step, _, value in metrics.curve(session, job_id)["lease"]
            }
            lines = session.execute(select(JobLog.job_id, JobLog.line).order_by(JobLog.seq)).all()
        rows = {row["id"]: dict(row) for row in found[Job]}
        assert rows.keys() == {job.id for job in self.present()}
        for job in self.present():
            row = rows[job.id]
            assert {name: row[name] for name in COLUMNS} == {
                name: getattr(job, name) for name in COLUMNS
            }
            assert (row["error"] is not None) == (job.status == "failed")
            if job.status in TERMINAL:
                job.ended = job.ended or row
                assert row == job.ended
            assert [line for id, line in lines if id == job.id] == job.lines
        assert {row["id"]: {name: row[name] for name in SAVED} for row in found[Checkpoint]} == {
            id: asdict(saved) for id, saved in self.saved.items()
        }
        assert points == {
            (job.id, step): epoch for job in self.present() for step, epoch in job.points.items()
        }

    def told(self, job: Expected) -> None:
        """Its events have no gap, come from live leases, and tell an end once, if there is one."""
        with self.world.database.transaction(read_only=True) as session:
            query = select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq)
            events = session.scalars(query).all()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.data["lease"] for event in events if event.type == "note"] == job.notes
        statuses = [event.data["status"] for event in events if event.type == "status"]
        ends = [status for status in statuses if status in TERMINAL]
        assert ends == ([job.status] if job.status in TERMINAL else [])

    def everything_ends(self) -> None:
        """However the clock was set, no job waits for more than the clock to be there again."""
        self.clock.set(self.latest + timedelta(seconds=HOUR))
        self.reap()
        for job in self.unfinished():
            if job.status == "paused":
                self.ask(job, "resume")
        self.jump(HOUR)
        for _ in self.unfinished():
            self.claim("eve")
            self.finish(self.leases[-1], "failed")
        assert not self.unfinished()

    def what_ended_is_forgotten(self) -> None:
        for job in self.present():
            if job.status in TERMINAL:
                self.move(job, 2)
                self.forget(job)
                self.every_row_is_as_expected()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.what_ended_is_forgotten()
            self.everything_ends()
            self.what_ended_is_forgotten()
            assert self.saved.keys() == set(self.made_of)
            self.wake_up(self.leases[-1])


def _one(things: list[Any], which: int) -> Any:
    return things[which % len(things)]


def _do_not_wait_for_the_disk(database: Database) -> None:
    @event.listens_for(database.engine, "connect")
    def _hurry(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    database.dispose()


def live_through(world: World, clock: Clock, seed: int) -> None:
    """A few stories of twenty steps. Raises what the first one raises that does not go as it should."""
    if world.database.dialect == "sqlite":
        _do_not_wait_for_the_disk(world.database)

    @with_seed(seed)
    def story() -> JobMachine:
        return JobMachine(world, clock)

    run_state_machine_as_test(
        story,  # type: ignore[arg-type]
        settings=settings(
            # After ten, Hypothesis goes on with variations of them, which find less than new ones.
            max_examples=9,
            stateful_step_count=20,
            deadline=None,
            database=None,
            # Shrinking a failure runs the database for minutes; twenty steps are read faster.
            phases=[Phase.generate],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
