"""The process that serves the application, and how it ends."""

import contextlib
import gc
import os
import signal
import socket
from threading import Timer
from types import FrameType

import uvicorn

from api.app import create_app
from api.settings import ApiSettings
from api.stopping import Stopping

_REQUESTS_SECONDS = 10
"""What requests under way get to finish: more than a check does, so that its upload gets an answer."""
_ALL_SECONDS = 20


class Server(uvicorn.Server):
    """Tells the application at once that it is to end, not only after its last request, and ends in time."""

    def __init__(self, config: uvicorn.Config, stopping: Stopping) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.begin()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays. To look through all of it for garbage takes 0.3 s, every few thousand requests.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A thread may store bytes for a request that was given up: what is not committed is not there.
        last = Timer(_ALL_SECONDS, os._exit, [0])
        last.daemon = True
        last.start()
        await super().shutdown(sockets)


def serve(settings: ApiSettings) -> None:
    """Serve until a signal, and end within a bound."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=settings.access_log,
        timeout_graceful_shutdown=_REQUESTS_SECONDS,
    )
    sockets = [_shared(settings.host, settings.port)] if settings.processes > 1 else None
    # The server repeats the signal once it has stopped, which would kill what tidies up after it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, app.state.stopping).run(sockets)


def _shared(host: str, port: int) -> socket.socket:
    """A socket to listen on beside other processes; the kernel gives each of them a part of the connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    return found
