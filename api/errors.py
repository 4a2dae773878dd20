"""What goes wrong, as problem documents (RFC 9457): one table from exceptions to answers."""

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from api import faults
from store.errors import Conflict, NotFound
from tasks.parts.problems import Invalid, Problem

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is turned away; the message says why, in words for its sender."""

    headers: Mapping[str, str] = {}


class Unauthenticated(Refused):
    """No key, or none that is valid."""

    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012


class Forbidden(Refused):
    """A valid key without the scope that this route asks for."""


class UnsupportedMedia(Refused):
    """A content type that this route does not read."""


class Busy(Refused):
    """No room for this request now; `seconds` says when to try again."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(seconds)}


class Late(Refused):
    """The time that the caller gave for a request is over."""

    def __init__(self) -> None:
        super().__init__(
            "The time given in `X-Request-Timeout` was over before there was an answer."
        )


class Gone(Refused):
    """The caller left; what answers this is read by nobody but those who count."""

    def __init__(self) -> None:
        super().__init__("The caller left before there was an answer.")


class Stopped(Busy):
    """This process was told to end before it could do what was asked."""

    def __init__(self) -> None:
        super().__init__("The service is being stopped; please send this again.", seconds=5)


class StorageFull(Refused):
    """No room left on a disk or in the database; the rest of the service goes on."""


class Answer(NamedTuple):
    """How an exception is answered."""

    status: int
    type: str
    title: str


INVALID = Answer(422, "invalid", "The request or the data cannot be used as it is.")
INTERNAL = Answer(500, "internal", "Something went wrong on our side.")
UNAVAILABLE = Answer(503, "unavailable", "The service is not ready.")
ANSWERS: dict[type[Exception], Answer] = {
    RequestValidationError: INVALID,
    Invalid: INVALID,
    Unauthenticated: Answer(401, "unauthenticated", "A valid API key is needed."),
    Forbidden: Answer(403, "forbidden", "This API key may not do that."),
    NotFound: Answer(404, "not-found", "There is no such thing."),
    Conflict: Answer(409, "conflict", "Not possible in the present state."),
    UnsupportedMedia: Answer(415, "unsupported-media", "This content type is not read here."),
    Busy: Answer(503, "busy", "No room for this request now."),
    Gone: Answer(499, "gone", "The caller is gone."),
    Late: Answer(504, "late", "The time for this request is over."),
    StorageFull: Answer(507, "storage-full", "The storage of the service is full."),
    DataError: INVALID,
    OperationalError: UNAVAILABLE,
    PoolExhausted: UNAVAILABLE,
}
_SAID: dict[type[Exception], str] = {
    StorageFull: "Nothing of this request was kept. What is stored can still be read; "
    "whoever runs the service has to make room.",
    DataError: "A value in the request is none that the database can hold.",
    OperationalError: "The database does not answer at the moment; please try again.",
    PoolExhausted: "The database has no free connection at the moment; please try again.",
}
"""For exceptions whose own message would say too much."""


class ProblemOut(BaseModel):
    """One fault: where it is, what it is, what was found and what would be allowed."""

    loc: list[str | int] = Field(description="The way to the field or row.")
    msg: str = Field(description="What is wrong there.")
    found: Any = Field(None, description="What was found.")
    allowed: Any = Field(None, description="What would be allowed.")


class ErrorOut(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:modelyard:problem:invalid",
                    "title": "The request or the data cannot be used as it is.",
                    "status": 422,
                    "detail": "training.epoch: no such field; did you mean 'epochs'?, found 3",
                    "instance": "7839f565916a49dfac95dfda55a115bc",
                    "errors": [
                        {
                            "loc": ["training", "epoch"],
                            "msg": "no such field; did you mean 'epochs'?",
                            "found": 3,
                            "allowed": ["batch_size", "epochs", "optimizer", "seed"],
                        }
                    ],
                }
            ]
        }
    )

    type: str = Field(description="The kind of problem, stable across versions.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request.")
    instance: str = Field(description="The id of this request, also in `X-Request-Id`.")
    error: str | dict[str, str | None] = Field(
        "",
        description="`detail` again, outside `/v1`: where clients of other protocols look; OpenAI's in an object.",
    )
    errors: list[ProblemOut] = Field([], description="Every fault found, at most a hundred.")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its OpenAPI description."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}
            },
        }
        for status in statuses
    }


def add_error_table(app: FastAPI) -> None:
    """Answer every exception with a problem document."""
    for error in ANSWERS:
        app.add_exception_handler(error, explain)
    app.add_exception_handler(OSError, _explain_os)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(Exception, _explain_nothing)


def problem(
    scope: Scope,
    answer: Answer,
    detail: str,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as the answer to a request."""
    request_id = scope.get("state", {}).get("request_id", "")
    body = {
        "type": f"urn:modelyard:problem:{answer.type}",
        "title": answer.title,
        "status": answer.status,
        "detail": detail,
        "instance": request_id,
        "errors": [error._asdict() for error in errors],
    }
    if not scope["path"].startswith("/v1/"):
        # Where the clients of other protocols look, each for its own.
        of_openai = {"message": detail, "type": answer.type, "param": None, "code": answer.type}
        body["error"] = of_openai if scope["path"].startswith("/openai/") else detail
    sent = {"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff", **(headers or {})}
    return JSONResponse(body, answer.status, sent, "application/problem+json")


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or what it came from, says that a disk or the database has no room."""
    if error is None:
        return False
    return (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or getattr(error, "sqlite_errorname", None) == "SQLITE_FULL"
        or getattr(error, "sqlstate", None) == "53100"
        or is_full(error.__cause__)
    )


async def explain(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that ended with an exception of the table."""
    known = (kind for kind in type(error).__mro__ if kind in ANSWERS)
    kind = StorageFull if is_full(error) else next(known)
    answer, errors = ANSWERS[kind], [_shown(fault) for fault in _faults(request, error)]
    if answer is UNAVAILABLE or kind is StorageFull:
        log.warning("request %s: %s", request.scope["path"], error)
    detail = str(Invalid(*errors)) if errors else _SAID.get(kind, str(error))
    headers = {"Retry-After": "1"} if answer is UNAVAILABLE else getattr(error, "headers", None)
    return problem(request.scope, answer, detail, errors, headers)


async def _explain_os(request: Request, error: Exception) -> JSONResponse:
    if is_full(error):
        return await explain(request, error)
    raise error


def _faults(request: Request, error: Exception) -> Sequence[Problem]:
    if isinstance(error, RequestValidationError):
        return Invalid(*faults.of_request(request, error)).problems
    return error.problems if isinstance(error, Invalid) else ()


async def _explain_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if is_full(error):  # while the body was put aside
        return await explain(request, error)
    status = HTTPStatus(error.status_code)
    slug = status.phrase.lower().replace(" ", "-")
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request.app.routes, request.scope)))
    answer = Answer(status, slug, status.phrase)
    return problem(request.scope, answer, str(error.detail), headers=headers)


async def _explain_nothing(request: Request, error: Exception) -> JSONResponse:
    log.error("request %s failed", request.scope["path"], exc_info=error)
    return problem(request.scope, INTERNAL, "The log of the service says more about this request.")


def _methods(routes: Sequence[BaseRoute], scope: Scope) -> set[str]:
    """Every method that some route takes at the request's path."""
    wanted = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    return {
        method
        for method in wanted
        for route in routes
        if route.matches({**scope, "method": method})[0] == Match.FULL
    }


def _shown(fault: Problem) -> Problem:
    """The problem in what JSON can say, and not at any length."""
    loc = tuple(step if isinstance(step, int) else jsonable(step) for step in fault.loc)
    return Problem(loc, jsonable(fault.msg), shortened(fault.found), jsonable(fault.allowed))


def shortened(value: Any, limit: int = 200) -> Any:
    """A value that fits into an error message."""
    plain = jsonable(value)
    text = plain if isinstance(plain, str) else repr(plain)
    return plain if len(text) <= limit else text[:limit] + "..."


def jsonable(value: Any, depth: int = 20) -> Any:
    """A value as JSON can say it, not deeper than that; what JSON cannot say, in Python's words."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float():
            return value
        case str():
            return value.encode("utf-8", "replace").decode()
        case Mapping() | list() | tuple() | set() | frozenset() if depth == 0:
            return "..."
        case Mapping():
            return {jsonable(str(key)): jsonable(item, depth - 1) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item, depth - 1) for item in value]
    return repr(value)[:200]
