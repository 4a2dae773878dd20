"""Downloads of stored bytes: whole or a range of them, and none at all for who has them already."""

import re
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from api.errors import documented
from store import blobs
from store.session import Database

Responses = dict[int | str, dict[str, Any]]

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


def documented_file(media_type: str) -> Responses:
    """The responses of a route that answers with `download`, or with a problem where there is nothing."""
    return {
        200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The range asked for"},
        304: {"description": "Not modified"},
        **documented(404, 416),
    }


def download(
    request: Request,
    database: Database,
    blob_id: str,
    size: int,
    filename: str,
    media_type: str = "application/octet-stream",
) -> Response:
    """The blob's bytes as a file, after RFC 9110: ETag (the SHA-256), If-None-Match, Range, If-Range, HEAD.

    Raises HTTPException 416 for a range outside the file. Several ranges in one request are answered
    with the whole file, which the RFC allows.
    """
    etag = f'"{blob_id}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename)}",
    }
    if _matches(request.headers.get("If-None-Match"), etag):
        return Response(status_code=304, headers=headers)
    part = _part(request, etag, size)
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    content = blobs.read(database, blob_id, start, stop)
    return StreamingResponse(content, status, headers, media_type)


def _matches(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` lists the tag; weak tags count, as the RFC has it for this header."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or "*" in tags


def _part(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, stop) asked for; None for the whole file."""
    asked = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if asked is None or request.headers.get("If-Range", etag) != etag:
        return None
    first, last, suffix = asked.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < int(first):
        return None  # not a valid range, so it is as if there were none
    if start >= stop:
        raise HTTPException(
            416, f"The file has {size} bytes.", {"Content-Range": f"bytes */{size}"}
        )
    return start, stop
