"""Requests that are done once, however often they are sent: `Idempotency-Key`."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Header
from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy.orm import Session

from store import replies

Answer = TypeVar("Answer", bound=BaseModel)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours: the same request with the same key is done only once.",
    ),
]


def once(
    session: Session,
    project_id: str,
    key: str | None,
    request: Any,
    status: int,
    do: Callable[[], Answer],
    answer: type[Answer],
) -> Answer:
    """What `do` answers, or what it answered when this key came with the same request before.

    Raises Conflict when the key came with another request.
    """
    if key is None:
        return do()
    fingerprint = hashlib.sha256(to_json(request)).hexdigest()
    known = replies.begin(session, project_id, key, fingerprint)
    if known is not None:
        return answer.model_validate(known.body)
    done = do()
    replies.save(session, project_id, key, status, done.model_dump(mode="json"))
    return done
