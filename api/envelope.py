"""What surrounds every request: its id, its measured time, safe headers, and a bound on its bytes."""

import asyncio
import re
import time
from uuid import uuid4

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Stopped, explain
from api.metrics import REQUEST_SECONDS

_REQUEST_ID = re.compile(r"[\w.-]{1,64}")


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
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
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
            REQUEST_SECONDS.labels(scope["method"], route, str(status)).observe(seconds)


def _request_id(scope: Scope) -> str:
    """The sender's own id if it is a decent one."""
    given = Headers(scope=scope).get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


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
        said, sent = Headers(scope=scope).get("Content-Length", ""), 0

        async def receive_within() -> Message:
            nonlocal sent
            refuse(int(said) if said.isdecimal() else 0, limit)
            message = await receive()
            sent += len(message.get("body", b""))
            refuse(sent, limit)
            return message

        await self.app(scope, receive_within, send)


def refuse(size: int, limit: int) -> None:
    """Raises HTTPException 413 for a body of more bytes than are let in."""
    if size > limit:
        raise HTTPException(413, f"The body is larger than the {limit} bytes that are let in here.")
