"""Texts that are sent while they are written, as server-sent events."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic_core import to_json

from api.serving.engine import Ready, Serving
from tasks.parts.problems import Invalid, Problem
from tasks.text_generation import Generated, Piece

EVENTS = "text/event-stream"


def asked_for(request: Request) -> bool:
    """Whether a request wants events for an answer."""
    return EVENTS in request.headers.get("Accept", "")


async def begin(
    request: Request,
    serving: Serving,
    model: Ready,
    inputs: Sequence[Any],
    asked_by: tuple[str, ...] = ("header", "Accept"),
) -> AsyncIterator[Piece]:
    """What a model of texts goes on with after the only input, until the caller's time is over.

    `asked_by` is where a request says that it wants pieces. Raises Invalid and Busy.
    """
    if not issubclass(model.task.prediction_type, Generated):
        found, allowed = model.task.name, "a model for text-generation"
        raise Invalid(Problem(asked_by, "nothing to be sent in pieces", found, allowed))
    if len(inputs) != 1:
        message = "one text at a time is sent in pieces"
        raise Invalid(Problem(("inputs",), message, len(inputs), 1))
    return await serving.write(model, inputs[0], request.state.until)


def answer(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The response that sends them; it stops asking for them when its reader leaves."""
    # The header keeps proxies from holding events back.
    return StreamingResponse(events, headers={"X-Accel-Buffering": "no"}, media_type=EVENTS)


def event(data: Any, kind: str | None = None) -> bytes:
    """One event that holds JSON."""
    return format_sse_event(event=kind, data_str=to_json(data).decode())
