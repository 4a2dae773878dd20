"""What goes wrong, as problem documents (RFC 9457): one table from exceptions to answers."""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

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


class TooLarge(Refused):
    """More bytes than are let in."""


class UnsupportedMedia(Refused):
    """A content type that this route does not read."""


class Busy(Refused):
    """No room for this request now; `seconds` says when to try again."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(seconds)}


class Answer(NamedTuple):
    """How an exception is answered."""

    status: int
    type: str
    title: str


INVALID = Answer(422, "invalid", "The request or the data cannot be used as it is.")
INTERNAL = Answer(500, "internal", "Something went wrong on our side.")
ANSWERS: dict[type[Exception], Answer] = {
    RequestValidationError: INVALID,
    Invalid: INVALID,
    Unauthenticated: Answer(401, "unauthenticated", "A valid API key is needed."),
    Forbidden: Answer(403, "forbidden", "This API key may not do that."),
    NotFound: Answer(404, "not-found", "There is no such thing."),
    Conflict: Answer(409, "conflict", "Not possible in the present state."),
    TooLarge: Answer(413, "too-large", "The request is too large."),
    UnsupportedMedia: Answer(415, "unsupported-media", "This content type is not read here."),
    Busy: Answer(503, "busy", "No room for this request now."),
}


class ProblemOut(BaseModel):
    """One fault: where it is, what it is, what was found and what would be allowed."""

    loc: list[str | int] = Field(description="The way to the field or row.")
    msg: str = Field(description="What is wrong there.")
    found: Any = Field(None, description="What was found.")
    allowed: Any = Field(None, description="What would be allowed.")


class ErrorOut(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="The kind of problem, stable across versions.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request.")
    instance: str = Field(description="The id of this request, also in `X-Request-Id`.")
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
        app.add_exception_handler(error, _explain)
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
    body = {
        "type": f"urn:modelyard:problem:{answer.type}",
        "title": answer.title,
        "status": answer.status,
        "detail": detail,
        "instance": scope.get("state", {}).get("request_id", ""),
        "errors": [_shown(error) for error in errors[: Invalid.LIMIT]],
    }
    return JSONResponse(body, answer.status, headers, "application/problem+json")


async def _explain(request: Request, error: Exception) -> JSONResponse:
    answer = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    errors: Sequence[Problem] = ()
    if isinstance(error, RequestValidationError):
        errors = _of_request(request, error)
    elif isinstance(error, Invalid):
        errors = error.problems
    detail = str(Invalid(*errors)) if errors else str(error)
    return problem(request.scope, answer, detail, errors, getattr(error, "headers", None))


async def _explain_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
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


# Pydantic's errors in our words


def from_pydantic(
    error: ValidationError | RequestValidationError, body: Any, schema: "Schema", loc: tuple[str, ...] = ()
) -> list[Problem]:
    """The faults of a body, with the place as its sender wrote it and what `schema` allows there."""
    return [_of_body(fault, body, schema, loc) for fault in error.errors()]


class Schema(NamedTuple):
    """A JSON schema and the document its references point into."""

    node: Mapping[str, Any]
    document: Mapping[str, Any]

    @classmethod
    def of(cls, model: type[BaseModel]) -> "Schema":
        whole = model.model_json_schema()
        return cls(whole, whole)

    def at(self, way: Sequence[str | int], value: Any) -> "Schema":
        """The schema of the part of `value` that lies at the end of `way`."""
        schema = self._choose(value)
        for step in way:
            node = schema.node
            inner = node.get("items", {}) if isinstance(step, int) else _property(node, step)
            value = value[step] if _holds(value, step) else None
            schema = schema._replace(node=inner)._choose(value)
        return schema

    def options(self) -> list[str]:
        """The names a union's discriminator knows."""
        for branch in self._branches():
            if "discriminator" in branch.node:
                return sorted(branch.node["discriminator"]["mapping"])
        return []

    def fields(self) -> list[str]:
        """The fields an object may have."""
        return sorted(self.node.get("properties", {}))

    def _branches(self) -> Iterator["Schema"]:
        schema = self._resolved()
        yield schema
        for branch in schema.node.get("anyOf", ()):
            yield from schema._replace(node=branch)._branches()

    def _choose(self, value: Any) -> "Schema":
        """The branch of a union that `value` means by its `name`; itself if it means none."""
        for branch in self._branches():
            mapping = branch.node.get("discriminator", {}).get("mapping", {})
            name = value.get("name") if isinstance(value, dict) else None
            if isinstance(name, str) and name in mapping:
                return branch._replace(node={"$ref": mapping[name]})._resolved()
            if isinstance(value, dict) and "properties" in branch.node:
                return branch
        return self._resolved()

    def _resolved(self) -> "Schema":
        node = self.node
        while "$ref" in node:
            target: Any = self.document
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            node = target
        return self._replace(node=node)


def _property(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    extra = node.get("additionalProperties")
    found: Mapping[str, Any] = node.get("properties", {}).get(
        name, extra if isinstance(extra, dict) else {}
    )
    return found


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value


def _of_request(request: Request, error: RequestValidationError) -> list[Problem]:
    schema = _body_schema(request)
    return [
        _of_body(fault | {"loc": fault["loc"][1:]}, error.body, schema, ())
        if fault["loc"][:1] == ("body",)
        else _plain(fault, tuple(fault["loc"]))
        for fault in error.errors()
    ]


def _body_schema(request: Request) -> Schema:
    document = request.app.openapi()
    path = getattr(request.scope.get("route"), "path_format", "")
    operation = document["paths"].get(path, {}).get(request.method.lower(), {})
    content = operation.get("requestBody", {}).get("content", {})
    return Schema(next(iter(content.values()), {}).get("schema", {}), document)


def _of_body(fault: Any, body: Any, schema: Schema, prefix: tuple[str, ...]) -> Problem:
    way = _as_written(fault["loc"], body)
    found = _plain(fault, (*prefix, *way))
    match fault["type"]:
        case "union_tag_not_found":
            options = schema.at(way[:-1], body)._at_property(way, schema)
            return found._replace(loc=(*found.loc, "name"), msg="is missing", allowed=options)
        case "extra_forbidden" if way:
            fields = schema.at(way[:-1], body).fields()
            return found._replace(msg=_unknown_field(str(way[-1]), fields), allowed=fields or None)
    return found


def _as_written(loc: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """A place in the body without the union tags that pydantic puts between the fields."""
    way: list[str | int] = []
    for step in loc:
        if _holds(body, step):
            body = body[step]  # type: ignore[index]
        elif isinstance(body, dict) and step != body.get("name"):
            body = None  # a field that is missing
        else:
            continue
        way.append(step)
    return tuple(way)


def _plain(fault: Any, loc: tuple[str | int, ...]) -> Problem:
    context = fault.get("ctx", {})
    missing = fault["type"] == "missing"
    allowed = re.findall(r"'([^']*)'", context.get("expected_tags", context.get("expected", "")))
    limits = {name: context[name] for name in _LIMITS if name in context}
    return Problem(loc, fault["msg"], None if missing else fault["input"], allowed or limits or None)


_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "multiple_of")


def _unknown_field(name: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, fields, 1)
    return f"no such field; did you mean {close[0]!r}?" if close else "no such field"


def _shown(error: Problem) -> dict[str, Any]:
    return {
        "loc": list(error.loc),
        "msg": error.msg,
        "found": shortened(error.found),
        "allowed": jsonable(error.allowed),
    }


def shortened(value: Any, limit: int = 200) -> Any:
    """A value that fits into an error message."""
    plain = jsonable(value)
    text = plain if isinstance(plain, str) else repr(plain)
    return plain if len(text) <= limit else text[:limit] + "..."


def jsonable(value: Any) -> Any:
    """A value as JSON can say it; what JSON cannot say, in Python's words."""
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        case bytes():
            return repr(value[:100])
        case None | bool() | int() | float():
            return value
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
    return repr(value)
