"""Routes of predictions, which are called so often that what stands before them counts."""

import math
from collections.abc import Callable, Coroutine, Iterable, Set
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import demand
from api.errors import Gone, documented
from api.headers import header
from api.patience import Patience
from api.serving import timing
from tasks.parts.problems import Invalid, Problem

Answer = Callable[[Request], Coroutine[Any, Any, Response]]

_TIMEOUT = "X-Request-Timeout"
_MOST_SECONDS = 3_600.0
_DESCRIBED = {
    "name": _TIMEOUT,
    "in": "header",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": _MOST_SECONDS},
    "description": "Seconds after which nobody waits for the answer any more: it is 504 then, and "
    "what was not begun is not computed. A stream that has begun ends then.",
}


class LeanRoute(APIRoute):
    """Calls its endpoint with the path's parameters, `principal` and `request`, past FastAPI's dependencies.

    Solving them costs some 0.1 ms of processor time, more than a small model's share of a batch. The
    endpoint's signature stays what the OpenAPI document is made from; the path's parameters are texts. The
    key must have the scope `predict`. The body is read before the endpoint is called, whose work ends
    when its caller leaves or the time of `X-Request-Timeout` is over.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = dict(options.pop("openapi_extra", None) or {})
        extra["parameters"] = [*extra.get("parameters", ()), _DESCRIBED]
        responses = {**documented(504), **(options.pop("responses", None) or {})}
        super().__init__(path, endpoint, openapi_extra=extra, responses=responses, **options)

    def get_route_handler(self) -> Answer:
        endpoint = self.endpoint

        async def answer(request: Request) -> Response:
            principal, spent = demand(request, "predict"), timing.begin()
            async with Patience(request, _seconds(request.scope)) as patience:
                request.state.until = patience.until
                try:
                    await request.body()
                except ClientDisconnect:
                    raise Gone from None
                patience.watch()
                response: Response = await endpoint(
                    **request.path_params, principal=principal, request=request
                )
            response.raw_headers.append((b"server-timing", spent.header()))
            return response

        return answer


def _seconds(scope: Scope) -> float | None:
    """How long the caller waits. Raises Invalid for what is no such time."""
    given = header(scope, b"x-request-timeout")
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        allowed = f"a number of seconds above 0, at most {_MOST_SECONDS:.0f}"
        raise Invalid(Problem(("header", _TIMEOUT), "no time to wait", given[:80], allowed))
    return seconds


class _Way(NamedTuple):
    route: LeanRoute
    answer: Answer
    methods: Set[str]


class Shortcut:
    """Leads requests of lean routes straight to them; every other request goes the usual way.

    The usual way past FastAPI's layers and through its routing costs several times what is left of the
    request. Exceptions are answered by the application's own table.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self._ways = [
            _Way(route, route.get_route_handler(), route.methods or set())
            for route in routes
            if isinstance(route, LeanRoute)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._find(scope)
        if way is None:
            return await self.app(scope, receive, send)
        scope["route"] = way.route
        request = Request(scope, receive, send)
        try:
            response = await way.answer(request)
        except Exception as error:
            response = await _explain(request, error)
        return await response(scope, receive, send)

    def _find(self, scope: Scope) -> _Way | None:
        if scope["type"] != "http" or scope.get("root_path"):
            return None
        for way in self._ways:
            if scope["method"] in way.methods and (
                found := way.route.path_regex.match(scope["path"])
            ):
                scope["path_params"] = found.groupdict()
                return way
        return None


async def _explain(request: Request, error: Exception) -> Response:
    handlers = request.app.exception_handlers
    explain = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
    response: Response = await explain(request, error)
    return response
