"""API keys: only their hashes are kept."""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import ids, pages
from store.errors import NotFound
from store.session import now
from store.tables import ApiKey

_PREFIX_LENGTH, _SHORTEST_SHOWN = 7, 24
_TOUCH_EVERY = timedelta(minutes=1)


def create(
    session: Session,
    project_id: str,
    name: str,
    scopes: Sequence[str],
    *,
    expires_at: datetime | None = None,
    secret: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which cannot be had again; a `secret` that is a key already gives that one."""
    plain = secret or f"my_{secrets.token_urlsafe(32)}"
    known = find(session, plain)
    if known is not None:
        return known, plain
    key = ApiKey(
        id=ids.new("key"),
        project_id=project_id,
        name=name,
        # A short secret of the user's own would be given away by its beginning.
        prefix=plain[:_PREFIX_LENGTH] if len(plain) >= _SHORTEST_SHOWN else "",
        hash=_hash(plain),
        scopes=list(scopes),
        created_at=now(session),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, plain


def find(session: Session, plain_key: str) -> ApiKey | None:
    """The key with this text, be it expired or revoked."""
    return session.scalars(select(ApiKey).where(ApiKey.hash == _hash(plain_key))).one_or_none()


def get(session: Session, key_id: str) -> ApiKey:
    """Raises NotFound."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound("key", key_id)
    return key


def touch(session: Session, key_id: str) -> None:
    """Note that the key was used; written at most once a minute."""
    key, moment = get(session, key_id), now(session)
    if key.last_used_at is None or moment - key.last_used_at >= _TOUCH_EVERY:
        key.last_used_at = moment


def page(
    session: Session, limit: int = 20, after: str | None = None, project_id: str | None = None
) -> pages.Page[ApiKey]:
    query = select(ApiKey)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    return pages.newest_first(session, query, ApiKey.id, limit, after)


def revoke(session: Session, key_id: str) -> ApiKey:
    """The key opens nothing any more; repeating it changes nothing. Raises NotFound."""
    key = get(session, key_id)
    key.revoked_at = key.revoked_at or now(session)
    return key


def count(session: Session) -> int:
    """How many keys there are, revoked ones included."""
    return session.execute(select(func.count()).select_from(ApiKey)).scalar_one()


def _hash(plain_key: str) -> str:
    return sha256(plain_key.encode("utf-8", "surrogatepass")).hexdigest()
