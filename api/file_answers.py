"""Predictions that are files, sent as such: an image that a model made is the body of the answer."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from fastapi import Request, Response

from tasks.base import Task, files_of
from tasks.parts.problems import Invalid, Problem

_WRITTEN = {"image/*": "image/png", "video/*": "video/mp4"}
"""What the files of predictions are, by what such fields may hold."""


def asked_for(request: Request, task: Task) -> str | None:
    """The field of a prediction that a request wants in the place of JSON, by its header `Accept`."""
    accepted = request.headers.get("Accept", "").split(",")
    kinds = [kind.partition(";")[0].strip() for kind in accepted]
    for field, holds in files_of(task.prediction_type).items():
        if any(not kind.startswith("*") and fnmatch(_written(holds), kind) for kind in kinds):
            return field
    return None


def check(inputs: Sequence[Any]) -> None:
    """Raises Invalid unless there is one input: one file is one body."""
    if len(inputs) != 1:
        message = "one file at a time is the body of an answer"
        raise Invalid(Problem(("inputs",), message, len(inputs), 1))


def answer(prediction: Any, field: str, task: Task) -> Response:
    """The response whose body is the file in that field of a prediction. Raises Invalid where it is empty."""
    kind, content = _written(files_of(task.prediction_type)[field]), getattr(prediction, field)
    if not content:
        allowed = "a parameter that asks for it, or application/json"
        raise Invalid(Problem(("header", "Accept"), f"no {field} was made", kind, allowed))
    return Response(content, media_type=kind)


def _written(holds: str) -> str:
    return _WRITTEN.get(holds, holds)
