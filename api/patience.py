"""How long a request is worth working on: as long as its caller waits for the answer."""

import asyncio
from types import TracebackType

from fastapi import Request

from api.errors import Gone, Late

_UNWATCHED_SECONDS = 0.05
"""Whoever is answered sooner is not watched, which would cost more than it could save."""


class Patience:
    """Ends what is awaited within it when the caller's time is over, or the caller is gone.

    Raises Late or Gone then.
    """

    def __init__(self, request: Request, seconds: float | None) -> None:
        """`seconds` count from here; None waits for ever."""
        loop = asyncio.get_running_loop()
        self._request, self._loop = request, loop
        self._limit = asyncio.timeout_at(None if seconds is None else loop.time() + seconds)
        self._first_look: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_gone = False

    @property
    def until(self) -> float | None:
        """When the caller's time is over, by the event loop's clock; None: never."""
        return self._limit.when()

    async def __aenter__(self) -> "Patience":
        await self._limit.__aenter__()
        return self

    def watch(self) -> None:
        """From now on see whether the caller is still there; its body has been read."""
        self._first_look = self._loop.call_later(_UNWATCHED_SECONDS, self._begin)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._first_look is not None:
            self._first_look.cancel()
        if self._watching is not None:
            self._watching.cancel()
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise (Gone() if self._is_gone else Late()) from None

    def _begin(self) -> None:
        self._watching = self._loop.create_task(self._see_it_leave())

    async def _see_it_leave(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if not self._limit.expired():
            self._is_gone = True
            self._limit.reschedule(self._loop.time())
