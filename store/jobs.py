"""Jobs: what was asked for, who runs it, and how it ended. The row is the truth; messages only wake.

A running job belongs to its lease. Whoever takes a job raises `lease_epoch`, and every write of the run
checks it, so that the runs of a job never mix and a finished job never changes (`leases.fence`).
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy import delete as delete_from
from sqlalchemy.orm import Session

from store import artifacts, checkpoints, datasets, events, ids, logs, models, pages, queues
from store import metrics as curves
from store.columns import Object
from store.errors import Conflict, NotFound
from store.leases import fence as fence
from store.leases import lock
from store.session import now
from store.tables import TERMINAL, Checkpoint, Job, JobEvent

Kind = Literal["train", "evaluate", "predict", "advise", "export"]
End = Literal["succeeded", "failed", "cancelled"]
Wish = Literal["cancel", "stop", "pause", "preempt"]
"""What a running job is to do: the first three for its user, the last for a job of higher priority."""


# What users ask for


def create(
    session: Session,
    project_id: str,
    *,
    kind: Kind,
    name: str,
    dataset_id: str | None,
    task: str,
    spec: Object,
    request: Object,
    queue: str,
    base: Object | None = None,
    base_checkpoint_id: str | None = None,
    parent_id: str | None = None,
    resume_checkpoint_id: str | None = None,
    priority: int = 0,
    devices: int = 1,
    budget_seconds: float | None = None,
    model_name: str | None = None,
    max_attempts: int = 3,
    webhook: Object | None = None,
    profile: Object | None = None,
    inputs_blob: str | None = None,
    trial_of: tuple[str, int, Object] | None = None,
) -> Job:
    """A queued job. A training makes a version of the model `model_name` (its `name` by default).

    Each of its statuses among the "events" of `webhook` is told to its "url". The steps that `profile`
    names are recorded by a profiler.
    A batch prediction reads a data set, or the inputs in a stored blob.
    A trial is one of a sweep, with a number and what was chosen for it.
    Raises NotFound for a data set or checkpoint that is not the project's, and for a blob that was swept.
    """
    dataset = datasets.hold(session, project_id, dataset_id) if dataset_id else None
    for checkpoint_id in filter(None, (base_checkpoint_id, resume_checkpoint_id)):
        checkpoints.hold(session, project_id, checkpoint_id)
    moment = now(session)
    sweep_id, trial, parameters = trial_of or (None, None, None)
    job = Job(
        id=ids.new("job"),
        project_id=project_id,
        kind=kind,
        name=name,
        dataset_id=dataset_id,
        dataset_name=dataset.name if dataset else None,
        task=task,
        spec=spec,
        request=request,
        base=base,
        base_checkpoint_id=base_checkpoint_id,
        resume_checkpoint_id=resume_checkpoint_id,
        parent_id=parent_id,
        status="queued",
        priority=priority,
        queue=queue,
        devices=devices,
        budget_seconds=budget_seconds,
        attempt=0,
        max_attempts=max_attempts,
        claims=0,
        lease_epoch=0,
        available_at=moment,
        created_at=moment,
        progress={},
        metrics={},
        model_name=model_name or name if kind == "train" else None,
        webhook=webhook,
        profile=profile,
        event_seq=0,
        log_seq=0,
        sweep_id=sweep_id,
        trial=trial,
        parameters=parameters,
        pruned=False,
    )
    session.add(job)
    session.flush()
    events.append(session, job, "status", {"status": "queued"})
    session.flush()
    if inputs_blob is not None:
        artifacts.keep(session, job, artifacts.INPUTS, artifacts.PARQUET, inputs_blob)
    return job


def get(session: Session, project_id: str, job_id: str) -> Job:
    """Raises NotFound, also for another project's job."""
    job = session.get(Job, job_id)
    if job is None or job.project_id != project_id:
        raise NotFound("job", job_id)
    return job


def load(session: Session, job_id: str) -> Job:
    """The job of any project. Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


def page(
    session: Session,
    project_id: str,
    limit: int = 20,
    after: str | None = None,
    status: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
) -> pages.Page[Job]:
    """The project's jobs, of a shown `status`, a task's name, a data set's id."""
    query = select(Job).where(Job.project_id == project_id)
    if status is not None:
        query = query.where(_shows(status))
    if task is not None:
        query = query.where(Job.task == task)
    if dataset is not None:
        query = query.where(Job.dataset_id == dataset)
    return pages.newest_first(session, query, Job.id, limit, after)


def cancel(session: Session, project_id: str, job_id: str) -> Job:
    """End the job and throw away what it learned; a running one ends at its next step.

    Raises Conflict when it has ended already.
    """
    job = _unfinished(session, project_id, job_id, "cancelled")
    if job.status == "running":
        _ask(session, job, "cancel")
    else:
        _end(session, job, "cancelled")
    return job


def stop(session: Session, project_id: str, job_id: str) -> Job:
    """End the training early with the best it has learned so far.

    Raises Conflict when there is nothing to stop: it has ended, is no training, or has learned nothing yet.
    """
    job = _unfinished(session, project_id, job_id, "stopped")
    if job.kind != "train":
        raise Conflict(
            f"Job {job_id} is no training, so it has nothing to keep; cancel it instead."
        )
    checkpoint = checkpoints.chosen(session, job_id)
    if job.status == "running":
        _ask(session, job, "stop")
    elif checkpoint is None:
        raise Conflict(
            f"Job {job_id} is {job.status} and has learned nothing yet, so there is nothing to keep; "
            "cancel it instead."
        )
    else:
        _succeed(session, job, checkpoint.id)
    return job


def pause(session: Session, project_id: str, job_id: str) -> Job:
    """Keep the job from running until `resume`; a running one saves a checkpoint first.

    Raises Conflict when it has ended or is being cancelled.
    """
    job = _unfinished(session, project_id, job_id, "paused")
    if job.status == "running":
        _ask(session, job, "pause")
    elif job.status == "queued":
        _leave(session, job, "paused")
    return job


def resume(session: Session, project_id: str, job_id: str) -> Job:
    """Let a paused job run again, with all its attempts; take back a pause that has not happened yet.

    Raises Conflict when it is neither paused nor pausing.
    """
    job = _unfinished(session, project_id, job_id, "resumed")
    if job.status == "running" and job.desired == "pause":
        job.desired = None
        events.append(session, job, "status", {"status": "running"})
    elif job.status == "paused":
        job.attempt, job.available_at = 0, now(session)
        _leave(session, job, "queued")
    else:
        raise Conflict(f"Job {job_id} is {shown_status(job)}; only a paused job can be resumed.")
    return job


def update(
    session: Session,
    project_id: str,
    job_id: str,
    *,
    name: str | None = None,
    priority: int | None = None,
) -> Job:
    """Rename a job, or move it in its queue. Raises Conflict for the priority of one that has ended."""
    job = _locked(session, project_id, job_id)
    if priority is not None and job.status in TERMINAL:
        raise Conflict(f"Job {job_id} has {job.status}, so its priority means nothing any more.")
    job.priority = job.priority if priority is None else priority
    job.name = name or job.name
    session.flush()
    return job


def prune(session: Session, project_id: str, job_id: str) -> bool:
    """Stop a trial that is not to become its sweep's best; whether it could be stopped."""
    try:
        job = stop(session, project_id, job_id)
    except (Conflict, NotFound):
        return False
    job.pruned = True
    session.flush()
    return True


def refuse(session: Session, job: Job, error: Object) -> None:
    """End a job, which nobody has taken yet, as failed."""
    job.error = error
    _end(session, job, "failed")


def delete(session: Session, project_id: str, job_id: str) -> None:
    """Forget a job that has ended, with all it wrote; what a model version is made of stays.

    Raises Conflict while it has not ended.
    """
    job = _locked(session, project_id, job_id)
    if job.status not in TERMINAL:
        raise Conflict(f"Job {job_id} is {shown_status(job)}; cancel it before deleting it.")
    checkpoints.discard(session, Checkpoint.job_id == job_id)
    session.expunge(job)
    session.execute(delete_from(Job).where(Job.id == job_id))


# What workers do


def claim(
    session: Session,
    owner: str,
    served: Sequence[str],
    ttl: float,
    worker_id: str,
    *,
    free: int = 1,
    devices: int = 1,
) -> Job | None:
    """Take the best ready job of the queues `served`: highest priority, then oldest; None if there is none.

    Jobs that need more than `devices` are for other workers. One that needs more than are `free` by now
    is waited for: nothing is taken before it, or else it might never find enough of them free.

    `owner` is a new name for every claim: one that is repeated because the reply to COMMIT was lost
    gets the job it already has. The lease ends after `ttl` seconds unless it is renewed.
    """
    mine = select(Job).where(Job.lease_owner == owner, Job.status == "running")
    job = session.scalars(mine).one_or_none()
    if job is None:
        query = select(Job).where(queues.ready(now(session), served, devices))
        query = query.order_by(*queues.BEST_FIRST).limit(1)
        job = session.scalars(
            query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}
        ).one_or_none()
        if job is None or job.devices > free:
            return None
        _take(session, job, owner, worker_id)
    job.lease_until = now(session) + timedelta(seconds=ttl)
    session.flush()
    return job


def renew(session: Session, job_id: str, lease_epoch: int, ttl: float) -> Wish | None:
    """Keep the lease for another `ttl` seconds; what the job is to do now. Raises Fenced.

    A late renewal is fine as long as nobody took the job over.
    """
    job = fence(session, job_id, lease_epoch)
    job.lease_until = now(session) + timedelta(seconds=ttl)
    wish: Wish | None = job.desired  # type: ignore[assignment]  # its column takes no other
    return wish or ("preempt" if queues.is_preempted(session, job) else None)


def record(
    session: Session,
    job_id: str,
    lease_epoch: int,
    *,
    points: Iterable[curves.Point] = (),
    progress: Object | None = None,
    lines: Sequence[tuple[str, str]] = (),
) -> None:
    """Write metrics, how far it is, and log lines (level, text). Raises Fenced."""
    job = fence(session, job_id, lease_epoch)
    curves.add(session, job_id, points)
    if lines:
        logs.append(session, job, lines)
    if progress is not None:
        job.progress = progress


def note(session: Session, job_id: str, lease_epoch: int, type: str, data: Object) -> JobEvent:
    """An event told by the job's holder. Raises Fenced."""
    return events.append(session, fence(session, job_id, lease_epoch), type, data)


def finish(
    session: Session,
    job_id: str,
    lease_epoch: int,
    status: End,
    *,
    error: Object | None = None,
    result: Object | None = None,
    metrics: Object | None = None,
    checkpoint_id: str | None = None,
) -> Job:
    """End the job. A training that succeeded makes a model version of `checkpoint_id`, or of its best one.

    Repeating it after the reply to COMMIT was lost succeeds. Raises Fenced, and Conflict when a training
    succeeds without any checkpoint.
    """
    ended = session.get(Job, job_id, populate_existing=True)
    if ended is not None and (ended.lease_epoch, ended.status) == (lease_epoch, status):
        return ended
    job = fence(session, job_id, lease_epoch)
    job.error, job.result = error, result
    if metrics is not None:
        job.metrics = metrics
    if status == "succeeded" and job.kind == "train":
        _succeed(session, job, checkpoint_id)
    else:
        _end(session, job, status)
    return job


def release(
    session: Session,
    job_id: str,
    lease_epoch: int,
    *,
    charge: bool,
    delay: float = 0.0,
    reason: Object | None = None,
    spec: Object | None = None,
) -> str:
    """Give the job back, to run again in `delay` seconds; its new status. Raises Fenced.

    What the user asked for meanwhile is done. A run that was at fault is charged: without attempts left
    the job has failed, for the `reason` {code, message, ...}. With a `spec` it goes on as that says.
    """
    job = fence(session, job_id, lease_epoch)
    job.spec = spec or job.spec
    _let_go(session, job, charge=charge, delay=delay, reason=reason)
    return job.status


def reap(session: Session) -> list[str]:
    """Take jobs from holders whose lease ran out, as a charged release; their ids."""
    query = select(Job).where(Job.status == "running", Job.lease_until < now(session))
    lost = session.scalars(
        query.order_by(Job.lease_until).limit(100).with_for_update(skip_locked=True),
        execution_options={"populate_existing": True},
    ).all()
    for job in lost:
        reason = {"code": "lost", "message": f"Worker {job.worker_id} was lost."}
        _let_go(session, job, charge=True, delay=backoff(job.attempt), reason=reason)
    return [job.id for job in lost]


def backoff(attempt: int) -> float:
    """Seconds to wait after a failed attempt: none after the first, then 10, 20, ... at most 300."""
    return 0.0 if attempt <= 1 else min(300.0, 5.0 * 2 ** (attempt - 1))


# What is shown


def shown_status(job: Job) -> str:
    """The status, and what was asked of a running job: cancelling, pausing."""
    if job.status == "running":
        return {"cancel": "cancelling", "pause": "pausing"}.get(job.desired or "", "running")
    return job.status


def shown_model(job: Job) -> str | None:
    """The model version the job made, such as reviews@1, while it is there."""
    return f"{job.model_name}@{job.model_version}" if job.model_id else None


def counts(session: Session) -> dict[tuple[str, str], int]:
    """{(status, kind): jobs}"""
    query = select(Job.status, Job.kind, func.count()).group_by(Job.status, Job.kind)
    return {(status, kind): number for status, kind, number in session.execute(query)}


# How a job moves


def _take(session: Session, job: Job, owner: str, worker_id: str) -> None:
    job.status, job.lease_owner, job.worker_id = "running", owner, worker_id
    job.lease_epoch += 1
    job.attempt += 1
    job.claims += 1
    job.started_at = job.started_at or now(session)
    # Only a wish to stop outlives a lost run (see `_let_go`), and this run is to fulfil it.
    data = {"status": "running", "attempt": job.attempt, "worker": worker_id}
    events.append(session, job, "status", data)


def _let_go(
    session: Session, job: Job, *, charge: bool, delay: float, reason: Object | None
) -> None:
    """What becomes of a job whose run ended before the job did."""
    exhausted = charge and job.attempt >= job.max_attempts
    learned = checkpoints.chosen(session, job.id) if job.desired == "stop" else None
    if job.desired == "cancel":
        _end(session, job, "cancelled")
    elif learned is not None:
        _succeed(session, job, learned.id)
    elif job.desired != "pause" and exhausted:
        job.error = _given_up(job, reason)
        _end(session, job, "failed")
    else:
        job.attempt -= 0 if charge else 1
        job.available_at = now(session) + timedelta(seconds=delay)
        status = "paused" if job.desired == "pause" else "queued"
        _leave(session, job, status, **({"reason": reason} if reason else {}))


def _given_up(job: Job, reason: Object | None) -> Object:
    """The error of a job that ends every run of it: what was seen of the last one."""
    found = reason or {}
    times = "once" if job.attempt == 1 else f"{job.attempt} times in a row without progress"
    last = found.get("message") or "It ended without saying why."
    message = f"The job was tried {times} and did not get through. {last}"
    return {**found, "code": "poison", "cause": found.get("code", "unknown"), "message": message}


def _succeed(session: Session, job: Job, checkpoint_id: str | None) -> None:
    """End a training well: its model can be served from this transaction on.

    Of a sweep's trials, only the best makes a version, once all have ended (`sweeps.succeed`).
    """
    best = checkpoints.chosen(session, job.id)
    made_of = checkpoint_id or (best.id if best else None)
    if made_of is None:
        raise Conflict(f"Job {job.id} cannot succeed: it has no checkpoint to make a model of.")
    if job.sweep_id is not None:
        _end(session, job, "succeeded")
        return
    version = models.publish(session, job.project_id, job.model_name or job.name, job.id, made_of)
    job.model_id, job.model_version = version.model_id, version.version
    _end(session, job, "succeeded", model=shown_model(job))


def _end(session: Session, job: Job, status: End, **data: str | None) -> None:
    """Into a status that the job never leaves."""
    job.finished_at = now(session)
    if job.error is not None:
        shown = {key: job.error.get(key) for key in ("code", "message")}
        _leave(session, job, status, error=shown)
    else:
        _leave(session, job, status, **data)
    if status == "cancelled":
        checkpoints.discard(session, Checkpoint.job_id == job.id)
        artifacts.drop_parts(session, job.id)


def _leave(session: Session, job: Job, status: str, **data: object) -> None:
    """Into a status in which nobody runs the job."""
    job.status, job.lease_owner, job.lease_until = status, None, None
    if not (status == "queued" and job.desired == "stop"):
        job.desired = None
    events.append(session, job, "status", {"status": status, **data})
    session.flush()


def _ask(session: Session, job: Job, desired: str) -> None:
    """Tell a running job what the user wants of it; the heartbeat brings it to the trainer."""
    if job.desired == "cancel" and desired != "cancel":
        raise Conflict(f"Job {job.id} is being cancelled.")
    if job.desired != desired:
        job.desired = desired
        events.append(session, job, "status", {"status": shown_status(job), "desired": desired})
    session.flush()


def _unfinished(session: Session, project_id: str, job_id: str, done: str) -> Job:
    """The job, locked. Raises NotFound, and Conflict when it has ended and so cannot be `done`."""
    job = _locked(session, project_id, job_id)
    if job.status in TERMINAL:
        ended = "was cancelled" if job.status == "cancelled" else f"has {job.status}"
        raise Conflict(f"Job {job_id} {ended} already; it cannot be {done}.")
    return job


def _locked(session: Session, project_id: str, job_id: str) -> Job:
    get(session, project_id, job_id)
    return lock(session, job_id)


# Which jobs


def _shows(status: str) -> ColumnElement[bool]:
    """Those whose shown status this is."""
    asked = {"cancelling": "cancel", "pausing": "pause"}
    if status in asked:
        return (Job.status == "running") & (Job.desired == asked[status])
    if status == "running":
        return (Job.status == status) & or_(Job.desired.is_(None), Job.desired == "stop")
    return Job.status == status
