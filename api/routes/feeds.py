"""What a job says while it runs: its events and its log."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from api.auth import Train
from api.dependencies import CurrentDatabase
from api.errors import documented
from api.schemas import Limit, PageOut, page_out
from api.stopping import Stopping
from store import events, jobs, logs
from store.errors import NotFound
from store.session import Database
from store.tables import TERMINAL, JobEvent

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_POLL_SECONDS, _PING_SECONDS = 0.5, 15.0
_AT_ONCE = 500
_After = Annotated[int, Query(ge=0, le=2**53, description="Only what has a higher `seq`.")]


class EventOut(BaseModel):
    """Something that happened to a job."""

    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="Its number, counted from 1 without gaps.")
    at: datetime = Field(description="When it happened.")
    type: str = Field(description="What happened: `status`, `checkpoint`, ...")
    data: dict[str, Any] = Field(description="What there is to say about it.")


class LogLineOut(BaseModel):
    """A line of a job's log."""

    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="Its number, counted from 1.")
    at: datetime = Field(description="When it was written.")
    level: str = Field(description="How serious it is.")
    line: str = Field(description="What it says.")


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get(
    "/{job_id}/events",
    response_model=PageOut[EventOut],
    summary="Events of a job",
    responses={**documented(404), **_STREAM},
)
async def list_events(
    request: Request,
    principal: Train,
    database: CurrentDatabase,
    job_id: str,
    limit: Limit = 100,
    after: _After = 0,
    last_event_id: Annotated[
        str | None, Header(description="The `id` of the last event a stream has brought.")
    ] = None,
) -> Any:
    """A page of events, oldest first.

    With `Accept: text/event-stream` a live stream of them, which ends with an event `end` once the job
    has ended. A stream that broke off is taken up with `Last-Event-ID`.
    """
    await run_in_threadpool(_demand, database, principal.project_id, job_id)
    if _accepts(request, "text/event-stream"):
        given = last_event_id or ""
        start = int(given) if given.isascii() and given.isdigit() else after
        # The header keeps proxies from holding events back.
        return StreamingResponse(
            _follow(database, job_id, min(start, 2**53), request.app.state.stopping),
            headers={"X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )
    return await run_in_threadpool(_page_of_events, database, job_id, after, limit)


@router.get(
    "/{job_id}/logs",
    response_model=PageOut[LogLineOut],
    summary="Log of a job",
    responses={**documented(404), **_TEXT},
)
def list_logs(
    request: Request,
    principal: Train,
    database: CurrentDatabase,
    job_id: str,
    limit: Limit = 100,
    after: _After = 0,
) -> Any:
    """A page of log lines, oldest first. With `Accept: text/plain` all that follow, as text."""
    _demand(database, principal.project_id, job_id)
    if _accepts(request, "text/plain"):
        return PlainTextResponse("".join(_lines(database, job_id, after)))
    with database.transaction(read_only=True) as session:
        return page_out(logs.page(session, job_id, after, limit), LogLineOut.model_validate)


def _accepts(request: Request, media_type: str) -> bool:
    return media_type in request.headers.get("Accept", "")


def _demand(database: Database, project_id: str, job_id: str) -> None:
    """Raises NotFound."""
    with database.transaction(read_only=True) as session:
        jobs.get(session, project_id, job_id)


def _page_of_events(database: Database, job_id: str, after: int, limit: int) -> dict[str, Any]:
    with database.transaction(read_only=True) as session:
        return page_out(events.page(session, job_id, after, limit), EventOut.model_validate)


def _lines(database: Database, job_id: str, after: int) -> Iterator[str]:
    more = True
    while more:
        with database.transaction(read_only=True) as session:
            rows, more, _ = logs.page(session, job_id, after, _AT_ONCE)
        yield from (f"{row.at:%Y-%m-%dT%H:%M:%SZ} {row.level} {row.line}\n" for row in rows)
        after = rows[-1].seq if rows else after


async def _follow(
    database: Database, job_id: str, after: int, stopping: Stopping
) -> AsyncIterator[bytes]:
    """Events as they come. No transaction is open while it waits.

    When the service is stopped the stream breaks off, to be taken up with another process of it.
    """
    silent = 0.0
    while not stopping:
        rows, ended = await run_in_threadpool(_news, database, job_id, after)
        for row in rows:
            after, silent = row.seq, 0.0
            yield _as_sse(row)
        if ended and not rows:
            yield format_sse_event(event="end", data_str="{}")
            return
        if silent >= _PING_SECONDS:
            silent = 0.0
            yield format_sse_event(comment="ping")
        if not rows:
            await asyncio.sleep(_POLL_SECONDS)
            silent += _POLL_SECONDS


def _news(database: Database, job_id: str, after: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether there will be none after these."""
    with database.transaction(read_only=True) as session:
        try:
            ended = jobs.load(session, job_id).status in TERMINAL
        except NotFound:
            return [], True
        return events.page(session, job_id, after, _AT_ONCE).rows, ended


def _as_sse(row: JobEvent) -> bytes:
    data = to_json({"at": row.at, **row.data}).decode()
    return format_sse_event(id=str(row.seq), event=row.type, data_str=data)
