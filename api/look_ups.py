"""What the database is asked for again and again, remembered for a moment so that busy requests need no SQL."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

REMEMBERED = 4_096

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class _Known(NamedTuple, Generic[Found]):
    found: Found
    at: float


class LookUps(Generic[Key, Found]):
    """Looks up on the event loop: once however many ask, and ahead of time for those who ask often."""

    def __init__(
        self,
        look_up: Callable[[Key], Found],
        executor: Executor | None = None,
        *,
        seconds: float,
        ahead: float,
    ) -> None:
        """`look_up` blocks, so it runs in `executor`; what it found is remembered for so many seconds.

        In the last share of these, `ahead`, it is looked up again while it still serves.
        """
        self._look_up, self._executor = look_up, executor
        self.seconds, self._ahead = seconds, ahead
        self._known: OrderedDict[Key, _Known[Found]] = OrderedDict()
        self._looking: dict[Key, asyncio.Task[Found]] = {}

    async def get(self, key: Key) -> Found:
        """What the key means. Raises what the look-up raises."""
        known = self._known.get(key)
        age = monotonic() - known.at if known is not None else self.seconds
        if known is None or age >= self.seconds:
            return await asyncio.shield(self._refresh(key))
        if age >= (1 - self._ahead) * self.seconds:
            self._refresh(key)
        return known.found

    def forget(self, is_meant: Callable[[Found], bool] = lambda found: True) -> None:
        """Look up again what is meant, and whatever is being looked up just now."""
        self._looking.clear()
        for key, known in list(self._known.items()):
            if is_meant(known.found):
                self._known.pop(key, None)

    def _refresh(self, key: Key) -> asyncio.Task[Found]:
        if key not in self._looking:
            task = asyncio.create_task(self._ask(key))
            # Nobody may be waiting for a refresh; a failure of it is told to the next who asks.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._looking[key] = task
        return self._looking[key]

    async def _ask(self, key: Key) -> Found:
        asked, loop = monotonic(), asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._executor, self._look_up, key)
        except BaseException:
            self._end(key, None)
            raise
        self._end(key, _Known(found, asked))
        return found

    def _end(self, key: Key, known: _Known[Found] | None) -> None:
        """Remember what the current look-up found, unless it was begun before `forget`."""
        if self._looking.get(key) is not asyncio.current_task():
            return
        del self._looking[key]
        self._known.pop(key, None)
        if known is not None:
            self._known[key] = known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
