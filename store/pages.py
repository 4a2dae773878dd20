"""Pages of rows, newest first, that stay right while rows are added."""

from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Some rows, whether more follow, and the cursor that gets them."""

    rows: list[T]
    has_more: bool
    next: str | None


def newest_first(
    session: Session,
    query: Select[T],
    key: InstrumentedAttribute[str],
    limit: int,
    after: str | None,
) -> Page[T]:
    """The `limit` rows that follow the one whose `key` is `after`; ids sort by time."""
    if after is not None:
        query = query.where(key < after)
    return _page(session, query.order_by(key.desc()), key.key, limit)


def in_order(
    session: Session,
    query: Select[T],
    key: InstrumentedAttribute[int],
    limit: int,
    after: int,
) -> Page[T]:
    """The `limit` rows with the next higher `key` than `after`."""
    return _page(session, query.where(key > after).order_by(key), key.key, limit)


def _page(session: Session, query: Select[Any], key: str, limit: int) -> Page[Any]:
    found = list(session.scalars(query.limit(limit + 1)))
    rows, has_more = found[:limit], len(found) > limit
    return Page(rows, has_more, str(getattr(rows[-1], key)) if has_more else None)
