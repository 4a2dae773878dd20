"""Trained states of jobs: the best and the last are kept."""

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from store import events, ids, leases
from store.columns import Object
from store.errors import NotFound
from store.session import now
from store.tables import TERMINAL, Checkpoint, Job, ModelVersion, Sweep


def publish(
    session: Session,
    job_id: str,
    lease_epoch: int,
    *,
    step: int,
    epoch: int,
    metrics: Object,
    value: float | None,
    is_best: bool,
    weights_blob: str,
    codec_blob: str,
    state_blob: str | None,
    state: Object,
    spec: Object,
) -> Checkpoint:
    """Make the job's newest checkpoint visible; older ones that are neither best nor held go.

    Progress pays attempts back: what comes further than before may fail as often as a new job.
    Raises Fenced.
    """
    job = leases.fence(session, job_id, lease_epoch)
    if step > _furthest(session, job_id):
        job.attempt = 1
    _step_down(session, job_id, best=is_best)
    checkpoint = Checkpoint(
        id=ids.new("ckpt"),
        project_id=job.project_id,
        job_id=job_id,
        step=step,
        epoch=epoch,
        metrics=metrics,
        value=value,
        is_best=is_best,
        is_last=True,
        weights_blob=weights_blob,
        codec_blob=codec_blob,
        state_blob=state_blob,
        state=state,
        spec=spec,
        created_at=now(session),
    )
    session.add(checkpoint)
    if is_best:
        job.metrics = metrics
    data = {"checkpoint": checkpoint.id, "step": step, "epoch": epoch, "is_best": is_best}
    events.append(session, job, "checkpoint", data | {"metrics": metrics})
    session.flush()
    of_job = Checkpoint.job_id == job_id
    discard(session, of_job & ~Checkpoint.is_best & ~Checkpoint.is_last)
    return checkpoint


def add(
    session: Session,
    project_id: str,
    *,
    step: int,
    epoch: int,
    metrics: Object,
    weights_blob: str,
    codec_blob: str,
    spec: Object,
) -> Checkpoint:
    """A checkpoint that no job of this service has made, for a version of a model to be made of."""
    checkpoint = Checkpoint(
        id=ids.new("ckpt"),
        project_id=project_id,
        step=step,
        epoch=epoch,
        metrics=metrics,
        is_best=False,
        is_last=False,
        weights_blob=weights_blob,
        codec_blob=codec_blob,
        state={},
        spec=spec,
        created_at=now(session),
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def best(session: Session, job_id: str) -> Checkpoint | None:
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.is_best)
    return session.scalars(query).one_or_none()


def last(session: Session, job_id: str) -> Checkpoint | None:
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.is_last)
    return session.scalars(query).one_or_none()


def chosen(session: Session, job_id: str) -> Checkpoint | None:
    """What stands for the job: its best checkpoint, or the last when none was ever called best."""
    return best(session, job_id) or last(session, job_id)


def get(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint:
    """Raises NotFound, also for another project's checkpoint."""
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None or checkpoint.project_id != project_id:
        raise NotFound("checkpoint", checkpoint_id)
    return checkpoint


def load(session: Session, checkpoint_id: str) -> Checkpoint:
    """The checkpoint of any project. Raises NotFound."""
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise NotFound("checkpoint", checkpoint_id)
    return checkpoint


def page(session: Session, job_id: str) -> list[Checkpoint]:
    """All of a job's checkpoints, newest first: there are only a few."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return list(session.scalars(query.order_by(Checkpoint.id.desc())))


def hold(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint:
    """Like `get`, and the checkpoint stays until the transaction ends."""
    query = select(Checkpoint).where(
        Checkpoint.id == checkpoint_id, Checkpoint.project_id == project_id
    )
    found = session.scalars(query.with_for_update(read=True, key_share=True)).one_or_none()
    if found is None:
        raise NotFound("checkpoint", checkpoint_id)
    return found


def discard(session: Session, those: ColumnElement[bool]) -> None:
    """Delete `those` checkpoints, and ones without a job, unless a model, unfinished job or sweep needs them."""
    unwanted = or_(those, Checkpoint.job_id.is_(None))
    query = select(Checkpoint.id).where(unwanted, ~_needed()).with_for_update()
    locked = list(session.scalars(query))
    # Whoever began to need one before the lock was had is seen only by this second look.
    session.execute(delete(Checkpoint).where(Checkpoint.id.in_(locked), ~_needed()))


def _needed() -> ColumnElement[bool]:
    starts_from = or_(
        Job.base_checkpoint_id == Checkpoint.id, Job.resume_checkpoint_id == Checkpoint.id
    )
    return or_(
        exists().where(ModelVersion.checkpoint_id == Checkpoint.id),
        exists().where(starts_from, Job.status.not_in(TERMINAL)),
        exists().where(Sweep.base_checkpoint_id == Checkpoint.id, Sweep.status == "running"),
    )


def _furthest(session: Session, job_id: str) -> int:
    found = last(session, job_id)
    return -1 if found is None else found.step


def _step_down(session: Session, job_id: str, *, best: bool) -> None:
    """The last checkpoint so far is not the last any more, and the best maybe not the best."""
    values = {"is_last": False, "is_best": False} if best else {"is_last": False}
    of_job = update(Checkpoint).where(Checkpoint.job_id == job_id)
    session.execute(of_job.values(values))


def scores(session: Session, checkpoint_id: str) -> Object:
    """Its metrics by split: those that its job ended with, of the test split too, where it stands for that job.

    Raises NotFound.
    """
    checkpoint = load(session, checkpoint_id)
    stands_for = checkpoint.job_id if checkpoint.is_best else None
    job = session.get(Job, stands_for) if stands_for else None
    return (job.metrics if job is not None else {}) or checkpoint.metrics


def dataset_of(session: Session, checkpoint_id: str) -> str | None:
    """The id of the data set that a checkpoint learned from; None when it, or the checkpoint's job, was deleted.

    Raises NotFound.
    """
    job_id = load(session, checkpoint_id).job_id
    job = session.get(Job, job_id) if job_id is not None else None
    return job.dataset_id if job is not None else None
