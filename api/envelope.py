"""What surrounds every request: its id, its measured time, safe headers, and a bound on its bytes."""

import asyncio
import re
import time
from collections.abc import Iterable
from functools import cache
from random import getrandbits

from fastapi import HTTPException, Request
from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Stopped, explain
from api.headers import header
from api.metrics import REQUEST_SECONDS

RawHeader = tuple[bytes, bytes]

_REQUEST_ID = re.compile(r"[\w.-]{1,64}")
_OURS = {b"x-request-id", b"x-content-type-options"}


class Envelope:
    """Gives every request an id, and every answer that id and safe headers; measures the time between.

    A request that holds up the end of the process is answered before it is broken off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status, answered, start = 500, False, time.perf_counter()

        async def send_on(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                message["headers"] = _enveloped(message["headers"], request_id)
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except asyncio.CancelledError:  # by the server, which has waited long enough to end
            if answered:
                raise
            answer = await explain(Request(scope), Stopped())
            await answer(scope, receive, send_on)
        finally:
            # Only templates of paths: the label must not grow with the ids that are asked for.
            route = getattr(scope.get("route"), "path_format", "none")
            seconds = time.perf_counter() - start
            _seconds_of(scope["method"], route, status).observe(seconds)


@cache
def _seconds_of(method: str, route: str, status: int) -> Histogram:
    return REQUEST_SECONDS.labels(method, route, str(status))


def _request_id(scope: Scope) -> str:
    """The sender's own id if it is a decent one; else one that need not be hard to guess."""
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else f"{getrandbits(128):032x}"


def _enveloped(headers: Iterable[RawHeader], request_id: str) -> list[RawHeader]:
    """An answer's headers with ours; whether it may be kept by caches is its own to say."""
    kept = [pair for pair in headers if pair[0] not in _OURS]
    if not any(name == b"cache-control" for name, _ in kept):
        kept.append((b"cache-control", b"no-store"))
    return [*kept, (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


class Bound:
    """Refuses a body above `limit` bytes, or an upload above its own; said or sent, whichever is first."""

    def __init__(
        self, app: ASGIApp, limit: int, uploads: re.Pattern[str], upload_limit: int
    ) -> None:
        """`uploads` are the paths of uploads."""
        self.app, self.limit = app, limit
        self.uploads, self.upload_limit = uploads, upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.upload_limit if self.uploads.fullmatch(scope["path"]) else self.limit
        said, sent = header(scope, b"content-length"), 0
        expected = int(said) if said.isdecimal() else 0

        async def receive_within() -> Message:
            nonlocal sent
            refuse(expected, limit)
            message = await receive()
            sent += len(message.get("body", b""))
            refuse(sent, limit)
            return message

        await self.app(scope, receive_within, send)


def refuse(size: int, limit: int) -> None:
    """Raises HTTPException 413 for a body of more bytes than are let in."""
    if size > limit:
        raise HTTPException(413, f"The body is larger than the {limit} bytes that are let in here.")
