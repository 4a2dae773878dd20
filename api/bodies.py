"""Bodies of requests for predictions: what they are, and what they say."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import pydantic_core
from fastapi import Request

from api.errors import UnsupportedMedia
from tasks.base import Task, files_of
from tasks.parts.problems import Invalid, Problem

JSON, FORM = "application/json", "multipart/form-data"
MOST_INPUTS = 1_000
LARGE_BYTES, LARGE_FILE_BYTES = 32_768, 4_096
"""Bodies from this size on are read in a thread, so that nobody else waits for it; files may unfold a lot."""


def is_large(body: bytes, task: Task) -> bool:
    """Whether a body is to be read in a thread."""
    return len(body) >= (LARGE_FILE_BYTES if files_of(task.input_type) else LARGE_BYTES)


def kind_of(request: Request, body: bytes, task: Task, *more: str) -> str:
    """What the body is: JSON, the media type of the task's inputs, or one of `more`.

    Where its sender says nothing, its first character does. Raises UnsupportedMedia.
    """
    said = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if said == JSON:
        return JSON
    files = [*files_of(task.input_type).values()][:1]
    if not said:
        return JSON if not files or body[:64].lstrip().startswith(b"{") else files[0]
    for kind in (*files, *more):
        if fnmatch(said, kind):
            return kind
    allowed = " or ".join((JSON, *files, *more))
    raise UnsupportedMedia(f"The body is {said!r}; models for {task.name} read {allowed}.")


def read_json(text: bytes | str, allowed: str, place: str = "body") -> Any:
    """What a JSON text says. Raises Invalid, with its place and what would be allowed."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(Problem((place,), f"not JSON: {error}", text[:40], allowed)) from None


def transpose(columns: Mapping[str, Sequence[Any]], place: str) -> list[dict[str, Any]]:
    """Inputs from the values of their fields. Raises Invalid unless every field has equally many."""
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        allowed = "as many values in each as there are inputs"
        raise Invalid(Problem((place,), "fields of unequal length", counts, allowed))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
