"""Clients in a closed loop over kept-alive HTTP/1.1, each with one request under way, lean enough to fill a server."""

import asyncio
import gc
import re
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import uvloop

LEAST = 3
"""Answers that every client waits for, however long they take; the first of them does not count."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Request(NamedTuple):
    """A POST to a server on this machine."""

    path: str
    headers: dict[str, str]
    body: bytes

    def encoded(self) -> bytes:
        """As it goes over the wire."""
        headers = {"Host": "127.0.0.1", **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


class Turn(NamedTuple):
    """What the clients saw of a server."""

    per_second: float
    latencies: list[float]
    """Seconds from sending to the last byte of the answer, ascending."""
    generator: float
    """Processor time that the clients took, as a share of one core."""

    def percentile(self, share: float) -> float:
        """The latency that this share of the answers did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Unexpected(RuntimeError):
    """An answer that is none, or other than 200."""


def drive(port: int, requests: Sequence[Request], clients: int, seconds: float) -> Turn:
    """So many clients for so long. Raises Unexpected.

    What is per second is counted when the first fifth of the time is over.
    """
    encoded = [request.encoded() for request in requests]
    gc.collect()
    gc.disable()  # its pauses would be taken for the server's
    try:
        return uvloop.run(_drive(port, encoded, clients, seconds))
    finally:
        gc.enable()


async def _drive(port: int, requests: list[bytes], clients: int, seconds: float) -> Turn:
    loop = asyncio.get_running_loop()
    began, busy = time.perf_counter(), time.process_time()
    made = [_Client(requests, place, began + seconds, loop) for place in range(clients)]
    for client in made:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(client.done for client in made))
    busy, took = time.process_time() - busy, time.perf_counter() - began
    begin = began + seconds / 5
    end = max(began + seconds, *(c.answered[LEAST - 1] for c in made))
    rate = sum(begin < at <= end for c in made for at in c.answered) / (end - begin)
    latencies = sorted(latency for client in made for latency in client.latencies[1:])
    return Turn(rate, latencies, busy / took)


class _Client(asyncio.Protocol):
    def __init__(
        self, requests: list[bytes], place: int, until: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self.answered: list[float] = []
        self.latencies: list[float] = []
        self._requests, self._place, self._until = requests, place, until
        self._buffer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.WriteTransport, transport
        )  # uvloop's is one only by its form
        self._send()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        head, found, body = data.partition(b"\r\n\r\n")
        if not (found and _is_whole(head, body)):
            self._buffer = data
            return
        now = time.perf_counter()
        self._buffer = b""
        self.answered.append(now)
        self.latencies.append(now - self._sent)
        if not head.startswith(b"HTTP/1.1 200 "):
            self._end(Unexpected(data[:500].decode(errors="replace")))
        elif now < self._until or len(self.answered) < LEAST:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._end(Unexpected(f"the connection was closed; {self._buffer[:500]!r}"))

    def _send(self) -> None:
        self._place = (self._place + 1) % len(self._requests)
        self._sent = time.perf_counter()
        self._transport.write(self._requests[self._place])

    def _end(self, error: Exception | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
        self._transport.close()


def _is_whole(head: bytes, body: bytes) -> bool:
    length = _LENGTH.search(head)
    if length is None:  # it comes in chunks, of which the last one is empty
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(length[1])
