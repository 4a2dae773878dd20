"""Requests that are done once, however often they are sent: `Idempotency-Key`."""

import hashlib
import json
from collections.abc import Callable, Set
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from store import replies
from store.tables import Reply
from tasks.parts.problems import Invalid, Problem

Answer = TypeVar("Answer", bound=BaseModel)

_NAME = "Idempotency-Key"
_Key = Annotated[
    str | None,
    Header(
        alias=_NAME,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours, a new one for each thing to create. The same request with the "
        "same key is done once: repeated within a day it gets the first answer again, with the header "
        "`Idempotency-Replayed: true`. Only success is kept: a request that was refused may be "
        "corrected and sent with its key again.",
    ),
]


class Repeatable:
    """The request at hand, done only once if it carries a key."""

    def __init__(self, request: Request, response: Response, key: _Key = None) -> None:
        self._request, self._response, self._key = request, response, key
        self._project_id: str = request.state.principal.project_id

    def __call__(
        self,
        session: Session,
        sent: Any,
        answer: type[Answer],
        do: Callable[[], Answer],
        *,
        secrets: Set[str] = frozenset(),
    ) -> Answer:
        """What `do` answers, or what it answered when `sent` came here with this key before.

        The fields named in `secrets` are not kept: a repeated answer has their defaults.
        Raises Invalid when the key came with another request.
        """
        if self._key is None:
            return do()
        fingerprint = self._fingerprint(sent)
        reply = replies.begin(session, self._project_id, self._key, fingerprint)
        if reply is not None:
            return self._replay(reply, fingerprint, answer)
        done = do()
        kept = done.model_dump(mode="json", by_alias=True, exclude=set(secrets))
        status = self._request.scope["route"].status_code
        replies.save(session, self._project_id, self._key, status, kept)
        return done

    def known(self, session: Session, sent: Any, answer: type[Answer]) -> Answer | None:
        """The answer there is already, for what takes long to do. Raises Invalid like a call."""
        reply = replies.find(session, self._project_id, self._key) if self._key else None
        return self._replay(reply, self._fingerprint(sent), answer) if reply else None

    def _fingerprint(self, sent: Any) -> str:
        """Tells requests apart: where they went and what they said."""
        if isinstance(sent, BaseModel):
            sent = sent.model_dump(mode="json", exclude_unset=True)
        url = self._request.url
        whole = json.dumps([self._request.method, url.path, url.query, sent], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def _replay(self, reply: Reply, fingerprint: str, answer: type[Answer]) -> Answer:
        if reply.fingerprint != fingerprint:
            raise Invalid(
                Problem(
                    ("header", _NAME),
                    "came with another request before",
                    self._key,
                    "that very request, or another key",
                )
            )
        assert reply.status is not None, "begun and saved in one transaction"
        self._response.status_code = reply.status
        self._response.headers["Idempotency-Replayed"] = "true"
        return answer.model_validate(reply.body)


Once = Annotated[Repeatable, Depends()]
