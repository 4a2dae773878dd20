"""The stories of `job_machine` notice when the store is broken: each entry here breaks it in one place."""

import inspect
from types import CodeType, ModuleType
from typing import NamedTuple

import pytest
from sqlalchemy.exc import SQLAlchemyError

from store import checkpoints, jobs, leases, queues, workers
from store.errors import StoreError
from store.session import Database
from tests.store.job_machine import live_through
from tests.store.world import Clock, World

SEEDS = range(8)
"""Any others would do; the same ones every time, so that a mutant that was noticed stays noticed."""


class Mutant(NamedTuple):
    """A text that a module has once, what stands there instead, and what is wrong then."""

    module: ModuleType
    text: str
    replacement: str
    wrong: str


MUTANTS = [
    # Who may write
    Mutant(
        leases,
        'job.status != "running" or job.lease_epoch != lease_epoch',
        'job.status != "running"',
        "the fence does not look at the token",
    ),
    Mutant(
        leases,
        'job.status != "running" or job.lease_epoch != lease_epoch',
        "job.lease_epoch != lease_epoch",
        "the fence does not look at the status",
    ),
    Mutant(
        leases,
        'raise Fenced(f"Job {job_id} was deleted.") from None',
        "raise",
        "the fence does not know that a job was deleted",
    ),
    Mutant(
        jobs,
        "job = fence(session, job_id, lease_epoch)\n    job.lease_until",
        "job = lock(session, job_id)\n    job.lease_until",
        "renew has no fence",
    ),
    Mutant(
        jobs,
        "job = fence(session, job_id, lease_epoch)\n    curves.add",
        "job = lock(session, job_id)\n    curves.add",
        "record has no fence",
    ),
    Mutant(
        jobs,
        "events.append(session, fence(session, job_id, lease_epoch), type, data)",
        "events.append(session, lock(session, job_id), type, data)",
        "note has no fence",
    ),
    Mutant(
        jobs,
        "job = fence(session, job_id, lease_epoch)\n    job.error",
        "job = lock(session, job_id)\n    job.error",
        "finish has no fence",
    ),
    Mutant(
        jobs,
        "job = fence(session, job_id, lease_epoch)\n    job.spec",
        "job = lock(session, job_id)\n    job.spec",
        "release has no fence",
    ),
    Mutant(
        checkpoints,
        "leases.fence(session, job_id, lease_epoch)",
        "leases.lock(session, job_id)",
        "publish has no fence",
    ),
    # Claim
    Mutant(jobs, "job.lease_epoch += 1", "job.lease_epoch += 0", "claim raises no token"),
    Mutant(jobs, "job.attempt += 1", "job.attempt += 0", "claim counts no attempt"),
    Mutant(
        jobs,
        "job is None or job.devices > free",
        "job is None",
        "claim takes a job with fewer devices than it needs",
    ),
    Mutant(
        jobs,
        "queues.ready(now(session), served, devices)",
        "queues.ready(now(session), served)",
        "claim waits for devices that there never will be",
    ),
    Mutant(
        jobs,
        "queues.ready(now(session), served, devices)",
        "queues.ready(now(session), served, free)",
        "claim lets a job pass that waits for devices",
    ),
    Mutant(
        queues,
        "condition &= Job.devices <= devices",
        "condition &= Job.devices < devices",
        "all devices of a worker are too few for a job",
    ),
    Mutant(
        queues,
        "ready(now(session), [queue], 1)",
        "ready(now(session), [queue])",
        "a job of several devices preempts",
    ),
    Mutant(
        jobs,
        "select(Job).where(Job.lease_owner == owner,",
        'select(Job).where(Job.lease_owner == "",',
        "a repeated claim takes another job",
    ),
    Mutant(
        jobs,
        "job.lease_until = now(session) + timedelta(seconds=ttl)\n    session",
        "job.lease_until = job.lease_until or now(session) + timedelta(seconds=ttl)\n    session",
        "a repeated claim keeps the old end of the lease",
    ),
    Mutant(
        jobs,
        "order_by(*queues.BEST_FIRST)",
        "order_by(Job.created_at, Job.id)",
        "claim does not look at the priority",
    ),
    Mutant(
        queues,
        '(Job.status == "queued") & (Job.available_at <= moment)',
        '(Job.status == "queued")',
        "claim does not wait for a delay",
    ),
    Mutant(
        queues,
        '(Job.status == "queued") & (Job.available_at <= moment)',
        '(Job.status == "queued") & (Job.available_at < moment)',
        "a delay is over too late",
    ),
    Mutant(
        queues,
        '(Job.status == "queued") & (Job.available_at <= moment)',
        '(Job.status.in_(("queued", "running"))) & (Job.available_at <= moment)',
        "claim takes running jobs",
    ),
    Mutant(
        queues,
        '(Job.status == "queued") & (Job.available_at <= moment)',
        '(Job.status.in_(("queued", "paused"))) & (Job.available_at <= moment)',
        "claim takes paused jobs",
    ),
    Mutant(
        queues,
        "condition & Job.queue.in_(queues)",
        "condition",
        "claim takes jobs of other queues",
    ),
    # Renew
    Mutant(
        jobs,
        "job.lease_until = now(session) + timedelta(seconds=ttl)\n    wish",
        "job.lease_until = max(job.lease_until, now(session) + timedelta(seconds=ttl))\n    wish",
        "a lease from before the clock was set back stays",
    ),
    Mutant(
        jobs,
        "job.lease_until = now(session) + timedelta(seconds=ttl)\n    wish",
        "job.lease_until += timedelta(seconds=ttl)\n    wish",
        "renew counts from the old end of the lease",
    ),
    Mutant(jobs, "return wish or (", "return (", "renew does not tell what the user wants"),
    # Finish
    Mutant(
        jobs,
        "(ended.lease_epoch, ended.status) == (lease_epoch, status)",
        "ended.status == status",
        "any earlier lease may repeat the end",
    ),
    Mutant(
        jobs,
        "(ended.lease_epoch, ended.status) == (lease_epoch, status)",
        "ended.lease_epoch == lease_epoch",
        "finish ends nothing",
    ),
    Mutant(
        jobs,
        "(ended.lease_epoch, ended.status) == (lease_epoch, status)",
        "False",
        "finish cannot be repeated",
    ),
    Mutant(
        jobs,
        'if status == "succeeded" and job.kind == "train":',
        "if False:",
        "success makes no model",
    ),
    # Reap and release
    Mutant(
        jobs,
        'Job.status == "running", Job.lease_until < now(session)',
        'Job.status == "running"',
        "reap does not look at the lease",
    ),
    Mutant(
        jobs,
        "Job.lease_until < now(session)",
        "Job.lease_until <= now(session)",
        "reap comes too early",
    ),
    Mutant(
        jobs,
        "charge=True, delay=backoff(job.attempt)",
        "charge=False, delay=backoff(job.attempt)",
        "reap charges nothing",
    ),
    Mutant(
        jobs,
        "charge=True, delay=backoff(job.attempt)",
        "charge=True, delay=0.0",
        "reap does not back off",
    ),
    Mutant(
        jobs,
        "_let_go(session, job, charge=charge, delay=delay, reason=reason)",
        "_let_go(session, job, charge=True, delay=delay, reason=reason)",
        "release always charges",
    ),
    Mutant(
        jobs,
        "_let_go(session, job, charge=charge, delay=delay, reason=reason)",
        "_let_go(session, job, charge=charge, delay=0.0, reason=reason)",
        "release does not delay",
    ),
    Mutant(
        jobs,
        "charge and job.attempt >= job.max_attempts",
        "charge and job.attempt > job.max_attempts",
        "a job may be tried once too often",
    ),
    Mutant(
        jobs,
        "charge and job.attempt >= job.max_attempts",
        "job.attempt >= job.max_attempts",
        "a job fails for a run that was not at fault",
    ),
    Mutant(
        jobs,
        "job.attempt -= 0 if charge else 1",
        "job.attempt -= 0",
        "a run that was not at fault counts",
    ),
    Mutant(
        jobs,
        'elif job.desired != "pause" and exhausted:',
        "elif exhausted:",
        "a job fails in spite of its pause",
    ),
    Mutant(
        jobs,
        'if job.desired == "cancel":\n        _end',
        "if False:\n        _end",
        "a lost job forgets its cancel",
    ),
    Mutant(
        jobs,
        'checkpoints.chosen(session, job.id) if job.desired == "stop" else None',
        "None",
        "a lost job forgets its stop",
    ),
    Mutant(
        jobs,
        'checkpoints.chosen(session, job.id) if job.desired == "stop" else None',
        "checkpoints.chosen(session, job.id)",
        "a lost job that has learned something succeeds",
    ),
    Mutant(
        jobs,
        '"paused" if job.desired == "pause" else "queued"',
        '"queued"',
        "a lost job forgets its pause",
    ),
    Mutant(
        jobs,
        'if not (status == "queued" and job.desired == "stop"):',
        "if True:",
        "a wish to stop is forgotten",
    ),
    Mutant(
        jobs,
        'if not (status == "queued" and job.desired == "stop"):',
        "if False:",
        "a fulfilled wish stays",
    ),
    # What users ask for
    Mutant(
        jobs,
        '_ask(session, job, "cancel")',
        '_end(session, job, "cancelled")',
        "cancel does not wait for the worker",
    ),
    Mutant(
        jobs,
        'if job.desired == "cancel" and desired != "cancel":',
        "if False:",
        "a cancel can be taken back",
    ),
    Mutant(jobs, '_ask(session, job, "stop")', '_ask(session, job, "cancel")', "stop cancels"),
    Mutant(
        jobs,
        'elif job.status == "queued":\n        _leave(session, job, "paused")',
        'elif False:\n        _leave(session, job, "paused")',
        "a queued job is not paused",
    ),
    Mutant(
        jobs,
        "job.attempt, job.available_at = 0, now(session)",
        "job.available_at = now(session)",
        "resume gives no new attempts",
    ),
    Mutant(
        jobs,
        "job.attempt, job.available_at = 0, now(session)",
        "job.attempt = 0",
        "resume keeps the delay",
    ),
    Mutant(
        jobs,
        'job.desired = None\n        events.append(session, job, "status", {"status": "running"})',
        'events.append(session, job, "status", {"status": "running"})',
        "a pause cannot be taken back",
    ),
    Mutant(
        jobs,
        'elif job.status == "paused":',
        'elif job.status != "running":',
        "resume does not ask for a pause",
    ),
    Mutant(
        jobs,
        "if job.status in TERMINAL:\n        ended",
        "if False:\n        ended",
        "users change jobs that have ended",
    ),
    Mutant(
        jobs,
        "if priority is not None and job.status in TERMINAL:",
        "if False:",
        "the priority of a job that has ended changes",
    ),
    Mutant(
        jobs,
        "if job.status not in TERMINAL:",
        'if job.status == "running":',
        "a queued job is deleted",
    ),
    # Checkpoints
    Mutant(
        checkpoints,
        "job.attempt = 1",
        "job.attempt += 0",
        "progress does not pay attempts back",
    ),
    Mutant(
        checkpoints,
        "step > _furthest(session, job_id)",
        "step >= _furthest(session, job_id)",
        "attempts are paid back without progress",
    ),
    Mutant(
        checkpoints,
        "_step_down(session, job_id, best=is_best)",
        "_step_down(session, job_id, best=False)",
        "two checkpoints are the best",
    ),
    Mutant(
        checkpoints,
        "_step_down(session, job_id, best=is_best)",
        "_step_down(session, job_id, best=True)",
        "the best checkpoint is forgotten",
    ),
    Mutant(
        checkpoints,
        "of_job & ~Checkpoint.is_best & ~Checkpoint.is_last",
        "of_job & ~Checkpoint.is_last",
        "the best checkpoint is thrown away",
    ),
    Mutant(
        checkpoints,
        "of_job & ~Checkpoint.is_best & ~Checkpoint.is_last",
        "of_job & ~Checkpoint.is_best & Checkpoint.is_last",
        "old checkpoints stay",
    ),
    Mutant(
        checkpoints,
        "exists().where(starts_from, Job.status.not_in(TERMINAL))",
        'exists().where(starts_from, Job.status == "queued")',
        "a checkpoint is thrown away that a job starts from",
    ),
    Mutant(
        checkpoints,
        "exists().where(starts_from, Job.status.not_in(TERMINAL))",
        "exists().where(starts_from)",
        "a checkpoint stays for a job that has ended",
    ),
    Mutant(
        checkpoints,
        "exists().where(ModelVersion.checkpoint_id == Checkpoint.id)",
        "exists().where(ModelVersion.job_id == Checkpoint.job_id)",
        "what a model is made of is thrown away with its job",
    ),
    Mutant(
        checkpoints,
        "or_(those, Checkpoint.job_id.is_(None))",
        "or_(those)",
        "checkpoints of deleted jobs stay for ever",
    ),
    Mutant(
        jobs,
        'if status == "cancelled":\n        checkpoints',
        "if False:\n        checkpoints",
        "what a cancelled job learned stays",
    ),
    Mutant(
        jobs,
        'if status == "cancelled":\n        checkpoints',
        'if status != "succeeded":\n        checkpoints',
        "what a failed job learned is thrown away",
    ),
    Mutant(
        jobs,
        "checkpoints.discard(session, Checkpoint.job_id == job_id)\n    session",
        "session",
        "what a deleted job learned stays",
    ),
    # Preemption
    Mutant(
        jobs,
        "queues.is_preempted(session, job)",
        "False",
        "nothing is preempted",
    ),
    Mutant(
        queues,
        "job.id in preemptions(session)",
        "True",
        "every job that is outranked is preempted",
    ),
    Mutant(
        queues,
        'if w.status != "draining"',
        "if w",
        "jobs of draining workers are preempted",
    ),
    Mutant(
        workers,
        "alive = all(session, seen_within)",
        "alive = all(session)",
        "jobs of dead workers are preempted",
    ),
    Mutant(
        queues,
        'Job.status == "running", Job.desired.is_(None)',
        'Job.status == "running"',
        "a device that is about to be free does not count as free",
    ),
    Mutant(
        queues,
        "running.priority < job.priority",
        "running.priority <= job.priority",
        "a job is preempted by its equal",
    ),
    Mutant(
        queues,
        "and running.id not in given",
        "",
        "two jobs preempt the same one",
    ),
    Mutant(
        queues,
        "youngest = max(lower, key=lambda r: (-r.priority,",
        "youngest = min(lower, key=lambda r: (r.priority,",
        "the oldest is preempted",
    ),
    Mutant(
        queues,
        "if job.queue in worker.queues]",
        "]",
        "a device is taken that does not serve the queue",
    ),
    Mutant(queues, "free[idle] -= 1", "free[idle] -= 0", "one free device is enough for all"),
]


CONTROLS = [
    Mutant(module, str(module.__doc__), str(module.__doc__), "nothing")
    for module in (leases, jobs, queues, workers, checkpoints)
]


def put_in_place(mutant: Mutant, patch: pytest.MonkeyPatch) -> None:
    """Change the code of the module's functions, so that whoever imported one has the mutant too."""
    module, text, replacement, _ = mutant
    source = inspect.getsource(module)
    assert source.count(text) == 1, f"{text!r} is {source.count(text)} times in {module.__name__}"
    compiled = compile(source.replace(text, replacement), str(module.__file__), "exec")
    codes = {each.co_name: each for each in compiled.co_consts if isinstance(each, CodeType)}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            patch.setattr(function, "__code__", codes[name])


def live_through_all(database: Database, patch: pytest.MonkeyPatch) -> None:
    world, clock = World(database), Clock(database, patch)
    for seed in SEEDS:
        live_through(world, clock, seed)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.wrong for mutant in MUTANTS])
def test_a_broken_store_is_noticed(
    mutant: Mutant, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(mutant, monkeypatch)
    with pytest.raises((AssertionError, StoreError, SQLAlchemyError)):
        live_through_all(sqlite_database, monkeypatch)


@pytest.mark.slow
def test_a_store_that_is_not_broken_is_not_noticed(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for control in CONTROLS:
        put_in_place(control, monkeypatch)
    live_through_all(sqlite_database, monkeypatch)
