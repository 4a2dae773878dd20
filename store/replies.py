"""Answers to requests with an idempotency key, so that a repeated request is done once."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.orm import Session

from store.columns import Object
from store.session import now
from store.statements import insert_new
from store.tables import Reply

KEPT_SECONDS = 86_400.0
"""How long a reply counts; after that its key is a new one."""


def find(session: Session, project_id: str, key: str) -> Reply | None:
    """The reply under this key, if there is one that counts. Waits for nobody."""
    fresh = Reply.created_at > _oldest(now(session))
    return session.scalars(select(Reply).where(_under(project_id, key), fresh)).one_or_none()


def begin(session: Session, project_id: str, key: str, fingerprint: str) -> Reply | None:
    """None when the key is new, and its request to be answered with `save` in this same transaction.

    Otherwise the reply to the request that the key came with first; its fingerprint tells whether
    that is this one. A transaction that works on a request with the same key is waited for.
    """
    moment, ours = now(session), _under(project_id, key)
    session.execute(delete(Reply).where(ours, Reply.created_at <= _oldest(moment)))
    row = {"project_id": project_id, "key": key, "fingerprint": fingerprint, "created_at": moment}
    if insert_new(session, Reply, row):
        return None
    return session.scalars(select(Reply).where(ours)).one()


def save(session: Session, project_id: str, key: str, status: int, body: Object) -> None:
    """Keep the answer of the request that `begin` called new."""
    reply = session.get_one(Reply, (project_id, key))
    reply.status, reply.body = status, body


def sweep(session: Session, older_than_seconds: float = KEPT_SECONDS + 60) -> None:
    """Forget old replies; those that only just ceased to count may be before the eyes of a `begin`."""
    oldest = now(session) - timedelta(seconds=older_than_seconds)
    session.execute(delete(Reply).where(Reply.created_at < oldest))


def _under(project_id: str, key: str) -> ColumnElement[bool]:
    return and_(Reply.project_id == project_id, Reply.key == key)


def _oldest(moment: datetime) -> datetime:
    return moment - timedelta(seconds=KEPT_SECONDS)
