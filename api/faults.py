"""Pydantic's errors in our words: the place as its sender wrote it, and what is allowed there."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from api.allowed import Schema, holds
from tasks.parts.problems import Invalid, Problem

Model = TypeVar("Model", bound=BaseModel)
Way = tuple[str | int, ...]
_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "multiple_of")


def of_request(request: Request, error: RequestValidationError) -> list[Problem]:
    """What is wrong with a request's body, path, query and headers."""
    schema = _body_schema(request)
    body = dict(error.body) if isinstance(error.body, FormData) else error.body
    return [
        _in_body(_of_body(fault, fault["loc"][1:], body, schema))
        if fault["loc"][:1] == ("body",)
        else _problem(fault, tuple(fault["loc"]))
        for fault in error.errors()
    ]


def read(model: type[Model], value: Any, place: Way = ()) -> Model:
    """A value as a `model`. Raises Invalid, saying what is wrong and where in `place`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [
            _of_body(fault, fault["loc"], value, Schema.of(model)) for fault in error.errors()
        ]
        found = (_in_body(fault._replace(loc=(*place, *fault.loc))) for fault in faults)
        raise Invalid(*found) from None


def _body_schema(request: Request) -> Schema:
    document = request.app.openapi()
    path = getattr(request.scope.get("route"), "path_format", "")
    operation = document["paths"].get(path, {}).get(request.method.lower(), {})
    content = operation.get("requestBody", {}).get("content", {}).values()
    return Schema(next((media["schema"] for media in content), {}), document)


def _in_body(problem: Problem) -> Problem:
    return problem if problem.loc else problem._replace(loc=("body",))


def _of_body(fault: Any, loc: Sequence[str | int], body: Any, schema: Schema) -> Problem:
    way = _as_written(loc, body)
    problem = _problem(fault, way)
    if fault["type"] == "union_tag_not_found":
        options = schema.at(way, body).names()
        return Problem((*way, _tag(fault)), "is missing", None, options or None)
    if fault["type"] == "union_tag_invalid":
        return problem._replace(loc=(*way, _tag(fault)), found=fault["ctx"]["tag"])
    if fault["type"] == "extra_forbidden":
        fields = schema.at(way[:-1], body).fields(_inside(body, way[:-1]))
        return Problem(way, _unknown_field(str(way[-1]), fields), fault["input"], fields or None)
    return problem


def _as_written(loc: Sequence[str | int], body: Any) -> Way:
    """The place without the names of union options that pydantic puts between the fields."""
    way: list[str | int] = []
    for step in loc:
        if holds(body, step):
            body = body[step]
        elif isinstance(body, dict) and step not in (body.get("name"), body.get("type")):
            body = None  # a field that is missing
        else:
            continue
        way.append(step)
    return tuple(way)


def _tag(fault: Any) -> str:
    """The field that tells options apart: `name`, or `type` of what has no name."""
    return str(fault["ctx"]["discriminator"]).strip("'")


def _inside(body: Any, way: Way) -> Any:
    for step in way:
        body = body[step] if holds(body, step) else None
    return body


def _problem(fault: Any, loc: Way) -> Problem:
    context = fault.get("ctx", {})
    found = None if fault["type"] in ("missing", "json_invalid") else fault["input"]
    expected = context.get("expected_tags", context.get("expected", ""))
    options = re.findall(r"'([^']*)'", expected) if isinstance(expected, str) else []
    limits = {name: context[name] for name in _LIMITS if name in context}
    return Problem(loc, _message(fault, context), found, options or limits or None)


def _message(fault: Any, context: Any) -> str:
    if fault["type"] == "union_tag_invalid":
        return "no such option"
    if fault["type"] == "json_invalid":
        return f"not valid JSON: {context['error']}"
    message: str = fault["msg"]
    return message.removeprefix("Value error, ")


def _unknown_field(name: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, fields, 1)
    return f"no such field; did you mean {close[0]!r}?" if close else "no such field"
