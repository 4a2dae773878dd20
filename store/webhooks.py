"""Webhooks: the outbox of job events, who sends which message when, and what signs them.

A message is written in the transaction of its event and stays pending until a receiver has taken it, so
that none is lost; it may be sent twice. Whoever claims one has it alone for `LEASE`.
"""

import base64
import random
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from store import ids, pages
from store.columns import Object
from store.errors import Conflict, NotFound
from store.session import now
from store.statements import insert_new
from store.tables import TERMINAL, Delivery, Job, JobEvent, WebhookSecret

LEASE = timedelta(seconds=30)
"""How long a claimed message is its sender's; an attempt takes half of it at most."""
BACKOFF_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""From a failed attempt to the next one, as Standard Webhooks recommends: three days in all."""
OVERLAP = timedelta(hours=24)
"""How long a secret signs beside the one that took its place."""
_LOOKED_AT = 256
_SECRET_BYTES = 32


# The outbox


def add(session: Session, job: Job, event: JobEvent) -> None:
    """Put a "status" event of a job into the outbox, if the job's webhook asks for it."""
    hook, status = job.webhook, event.data["status"]
    if hook is None or status not in hook["events"]:
        return
    session.add(
        Delivery(
            id=ids.new("msg"),
            project_id=job.project_id,
            job_id=job.id,
            seq=event.seq,
            url=hook["url"],
            type=f"job.{status}",
            data=_told(job, event),
            status="pending",
            attempts=0,
            claims=0,
            next_attempt_at=event.at,
            created_at=event.at,
        )
    )


def due(session: Session, busy: Collection[str] = ()) -> list[tuple[str, str]]:
    """(id, url) of messages to send now, the longest due first; none whose URL begins with one of `busy`.

    A message follows the earlier ones of its job, unless these wait for an attempt that is far away.
    """
    moment = now(session)
    earlier = aliased(Delivery)
    follows = exists().where(
        earlier.job_id == Delivery.job_id,
        earlier.seq < Delivery.seq,
        earlier.status == "pending",
        earlier.next_attempt_at <= moment + LEASE,
    )
    elsewhere = (~Delivery.url.startswith(origin, autoescape=True) for origin in busy)
    query = select(Delivery.id, Delivery.url).where(_is_due(moment), ~follows, *elsewhere)
    query = query.order_by(Delivery.next_attempt_at, Delivery.id).limit(_LOOKED_AT)
    return [(id, url) for id, url in session.execute(query)]


def claim(session: Session, delivery_ids: Collection[str]) -> Sequence[Delivery]:
    """Take those of these messages that are still due: an attempt begins, and nobody else has them."""
    moment = now(session)
    query = select(Delivery).where(Delivery.id.in_(delivery_ids), _is_due(moment))
    messages = session.scalars(
        query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}
    ).all()
    for message in messages:
        message.attempts += 1
        message.claims += 1
        message.next_attempt_at = moment + LEASE
    session.flush()
    return messages


def record(
    session: Session,
    delivery_id: str,
    claim: int,
    *,
    status: int | None,
    error: str | None = None,
    wait: float = 0.0,
    again: bool = True,
) -> None:
    """Write how an attempt ended: well, unless there is an `error`; `status` is the receiver's answer.

    The next one comes in `wait` seconds or later, or never, if there is not to be one `again` or this
    was the last. Nothing is written when the message was taken from this `claim` meanwhile.
    """
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.claims == claim)
    message = session.scalars(query.with_for_update()).one_or_none()
    if message is None or message.status != "pending":
        return
    moment, seconds = now(session), backoff(message.attempts) if again else None
    message.last_status, message.last_error = status, error
    message.next_attempt_at = None
    if error is None:
        message.status, message.delivered_at = "delivered", moment
    elif seconds is None:
        message.status = "failed"
    else:
        message.next_attempt_at = moment + timedelta(seconds=max(seconds, wait))


def backoff(attempt: int) -> float | None:
    """Seconds to wait after a failed attempt, somewhat at random; None after the last."""
    if attempt > len(BACKOFF_SECONDS):
        return None
    # Those that failed together are not to come back together.
    return BACKOFF_SECONDS[attempt - 1] * random.uniform(0.9, 1.1)


def retry(session: Session, project_id: str, delivery_id: str) -> Delivery:
    """Put a message back into the outbox, with all its attempts.

    Raises NotFound, also for another project's message, and Conflict while it is pending.
    """
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.project_id == project_id)
    message = session.scalars(query.with_for_update()).one_or_none()
    if message is None:
        raise NotFound("delivery", delivery_id)
    if message.status == "pending":
        raise Conflict(f"Delivery {delivery_id} is pending; it will be sent anyway.")
    message.status, message.attempts, message.delivered_at = "pending", 0, None
    message.next_attempt_at = now(session)
    session.flush()
    return message


def page(
    session: Session,
    project_id: str,
    limit: int = 20,
    after: str | None = None,
    job: str | None = None,
    status: str | None = None,
) -> pages.Page[Delivery]:
    """The project's messages, of a job's id, of a `status`."""
    query = select(Delivery).where(Delivery.project_id == project_id)
    if job is not None:
        query = query.where(Delivery.job_id == job)
    if status is not None:
        query = query.where(Delivery.status == status)
    return pages.newest_first(session, query, Delivery.id, limit, after)


def sweep(session: Session, older_than_seconds: float = 30 * 86400) -> None:
    """Forget old messages that are not pending, and secrets that sign no more."""
    moment = now(session)
    old = Delivery.created_at < moment - timedelta(seconds=older_than_seconds)
    session.execute(delete(Delivery).where(old, Delivery.status != "pending"))
    session.execute(delete(WebhookSecret).where(WebhookSecret.expires_at < moment))


def _told(job: Job, event: JobEvent) -> Object:
    """What a message says: enough to act on, and where to ask for more."""
    facts = {
        "id": job.id,
        "name": job.name,
        "kind": job.kind,
        "task": job.task,
        "dataset": job.dataset_id,
        "seq": event.seq,
    }
    outcome = {"metrics": job.metrics} if event.data["status"] in TERMINAL else {}
    return {**event.data, **facts, **outcome}


def _is_due(moment: datetime) -> ColumnElement[bool]:
    return (Delivery.status == "pending") & (Delivery.next_attempt_at <= moment)


# Secrets


def secret(session: Session, project_id: str) -> WebhookSecret:
    """The project's present secret, made at its first use."""
    query = select(WebhookSecret).where(_is_present(project_id))
    found = session.scalars(query).one_or_none()
    if found is None:
        insert_new(session, WebhookSecret, _new_secret(session, project_id))
        found = session.scalars(query).one()
    return found


def rotate(session: Session, project_id: str) -> WebhookSecret:
    """A new secret for the project; the one before signs beside it for `OVERLAP`.

    Those who ask at the same time may get the same one.
    """
    expiring = update(WebhookSecret).where(_is_present(project_id))
    session.execute(expiring.values(expires_at=now(session) + OVERLAP))
    return secret(session, project_id)


def signing(session: Session, project_id: str) -> list[str]:
    """The secrets that sign the project's messages now, the present one first."""
    present = secret(session, project_id)
    valid = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > now(session))
    query = select(WebhookSecret).where(WebhookSecret.project_id == project_id, valid)
    others = [row.secret for row in session.scalars(query) if row.id != present.id]
    return [present.secret, *others]


def _is_present(project_id: str) -> ColumnElement[bool]:
    return (WebhookSecret.project_id == project_id) & WebhookSecret.expires_at.is_(None)


def _new_secret(session: Session, project_id: str) -> Object:
    drawn = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    return {
        "id": ids.new("whs"),
        "project_id": project_id,
        "secret": f"whsec_{drawn}",
        "created_at": now(session),
    }
