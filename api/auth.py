"""Who is asking: API keys, what each may do, and the door that lets nobody in without one."""

import logging
from collections.abc import Awaitable, Callable, Set
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import Forbidden, Unauthenticated, explain
from api.headers import header
from api.look_ups import LookUps
from store import keys
from store.session import Database
from store.tables import ApiKey

log = logging.getLogger(__name__)

SCOPES = {
    "admin": "everything, keys and projects included",
    "train": "data sets, jobs, models and predictions",
    "predict": "the catalog, models and predictions",
}
_IMPLIED = {
    "admin": {"admin", "train", "predict"},
    "train": {"train", "predict"},
    "predict": {"predict"},
}
_TOUCH_SECONDS = 60
_AHEAD = 0.3
"""Share of the time that a key is remembered, at whose end it is looked up again."""

OPEN = {
    "/",
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/docs",
    "/openapi.json",
}
"""Paths that need no key; so do the files of the docs page."""
OPEN_FOLDER = "/docs/"


class Principal(NamedTuple):
    """The key behind a request."""

    key_id: str
    project_id: str
    scopes: frozenset[str]


class Keys:
    """Looks keys up, and remembers for a few seconds whom they belong to."""

    def __init__(self, database: Database, cache_seconds: float) -> None:
        self.database = database
        self.look_ups = LookUps(self._look_up, seconds=cache_seconds, ahead=_AHEAD)

    async def principal(self, plain_key: str) -> Principal:
        """Whom the key belongs to. Raises Unauthenticated."""
        return await self.look_ups.get(plain_key)

    def forget(self, key_id: str) -> None:
        """Look this key up again the next time it comes."""
        self.look_ups.forget(lambda principal: principal.key_id == key_id)

    def _look_up(self, plain_key: str) -> Principal:
        with self.database.transaction(read_only=True) as session:
            key = keys.find(session, plain_key)
        principal = _valid(key)
        assert key is not None
        self._touch(key)
        return principal

    def _touch(self, key: ApiKey) -> None:
        used = key.last_used_at
        if used is None or (datetime.now(UTC) - used).total_seconds() > _TOUCH_SECONDS:
            try:
                with self.database.transaction() as session:
                    keys.touch(session, key.id)
            except OperationalError as error:  # nobody who only reads is sent away by a full disk
                log.warning("the use of key %s is not noted: %s", key.id, error)


def _valid(key: ApiKey | None) -> Principal:
    if key is None:
        raise Unauthenticated("There is no such API key.")
    if key.revoked_at is not None:
        raise Unauthenticated("This API key was revoked.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise Unauthenticated("This API key has expired.")
    scopes = frozenset().union(*(_IMPLIED[scope] for scope in key.scopes))
    return Principal(key.id, key.project_id, scopes)


class Door:
    """Turns away every request without a valid key before a byte of its body is read."""

    def __init__(self, app: ASGIApp, also_open: Set[str] = frozenset()) -> None:
        self.app, self.open = app, OPEN | also_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]):
            return await self.app(scope, receive, send)
        try:
            scope["state"]["principal"] = await _authenticate(scope)
        except (Unauthenticated, OperationalError, PoolExhausted) as error:
            answer = await explain(Request(scope), error)
            return await answer(scope, receive, send)
        return await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self.open or path.startswith(OPEN_FOLDER)


async def _authenticate(scope: Scope) -> Principal:
    scheme, _, plain_key = header(scope, b"authorization").partition(" ")
    if scheme.lower() != "bearer" or not plain_key.strip():
        raise Unauthenticated("Send an API key: `Authorization: Bearer KEY`.")
    known: Keys = scope["app"].state.keys
    return await known.principal(plain_key.strip())


def demand(request: Request, scope: str) -> Principal:
    """Whoever is asking. Raises Forbidden without the scope."""
    found: Principal = request.scope["state"]["principal"]
    if scope not in found.scopes:
        raise Forbidden(f"This needs a key with the scope {scope!r}: {SCOPES[scope]}.")
    return found


# Only describes the key in the OpenAPI document; `Door` is what looks at it.
_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="An API key.")


def _needing(scope: str) -> Callable[..., Awaitable[Principal]]:
    async def principal(request: Request, _: Annotated[object, Depends(_bearer)]) -> Principal:
        return demand(request, scope)

    return principal


Admin = Annotated[Principal, Depends(_needing("admin"))]
Train = Annotated[Principal, Depends(_needing("train"))]
Predict = Annotated[Principal, Depends(_needing("predict"))]
