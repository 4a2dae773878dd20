"""Answers to requests with an idempotency key, so that a repeated request is done once."""

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.columns import Object
from store.errors import Conflict
from store.session import now
from store.statements import insert_new
from store.tables import Reply


def begin(session: Session, project_id: str, key: str, fingerprint: str) -> Reply | None:
    """None when the request is new and to be answered with `save` in this same transaction.

    Otherwise the answer it got. A transaction that does the same request right now is waited for.
    Raises Conflict when the key was used for another request.
    """
    row = {"project_id": project_id, "key": key, "fingerprint": fingerprint}
    if insert_new(session, Reply, {**row, "created_at": now(session)}):
        return None
    query = select(Reply).where(Reply.project_id == project_id, Reply.key == key)
    reply = session.scalars(query.with_for_update()).one()
    if reply.fingerprint != fingerprint:
        raise Conflict("This idempotency key was already used for a different request.")
    return reply


def save(session: Session, project_id: str, key: str, status: int, body: Object) -> None:
    """Keep the answer of the request that `begin` called new."""
    reply = session.get_one(Reply, (project_id, key))
    reply.status, reply.body = status, body


def sweep(session: Session, older_than_seconds: float = 7 * 86400) -> None:
    """Forget old answers."""
    oldest = now(session) - timedelta(seconds=older_than_seconds)
    session.execute(delete(Reply).where(Reply.created_at < oldest))
