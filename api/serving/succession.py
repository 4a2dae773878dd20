"""What a name newly stands for takes over once it is in memory; until then the one before it answers."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress

from api.serving.resident import Residents
from store.errors import NotFound
from store.models import Resolved

log = logging.getLogger(__name__)

REMEMBERED = 4_096
_AGAIN_SECONDS = 10.0
"""How long after a successor could not be loaded it is tried again."""

_Key = tuple[str, str]


class Succession:
    """Remembers what each name was answered by. Lives on the event loop."""

    def __init__(
        self, residents: Residents, resolve: Callable[[str, str], Awaitable[Resolved]]
    ) -> None:
        self._residents, self._resolve = residents, resolve
        self._answering: OrderedDict[_Key, Resolved] = OrderedDict()
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def choose(self, project_id: str, ref: str, found: Resolved) -> Resolved:
        """`found`, which the ref stands for, or what it stood for until that is loaded.

        What was deleted answers no more. A successor that cannot be loaded is tried again, and the one
        before it stays.
        """
        key = (project_id, ref)
        before = self._answering.get(key)
        if before is not None:
            if before.checkpoint.id == found.checkpoint.id:
                return found
            if not self._residents.ready(found.checkpoint.id) and await self._stays(key, before):
                self._load(found)
                return before
        self._answering[key] = found
        if len(self._answering) > REMEMBERED:
            self._answering.popitem(last=False)
        return found

    async def complete(self, project_id: str, ref: str, found: Resolved) -> None:
        """Return when `found` answers for the ref, or cannot be loaded; at once if nobody asked before."""
        if await self.choose(project_id, ref, found) is not found:
            with suppress(Exception):  # which `_try` tells
                await self._residents.get(found.checkpoint)

    async def _stays(self, key: _Key, before: Resolved) -> bool:
        """Whether the one before is in memory and not deleted."""
        if "@" in before.ref:
            try:
                now = await self._resolve(key[0], before.ref)
            except NotFound:
                return False
            if now.checkpoint.id != before.checkpoint.id:
                return False
        return self._residents.ready(before.checkpoint.id)

    def _load(self, successor: Resolved) -> None:
        checkpoint_id = successor.checkpoint.id
        if checkpoint_id not in self._loading:
            task = asyncio.create_task(self._try(successor))
            self._loading[checkpoint_id] = task
            task.add_done_callback(lambda _: self._loading.pop(checkpoint_id, None))

    async def _try(self, successor: Resolved) -> None:
        try:
            await self._residents.get(successor.checkpoint)
        except Exception as error:
            log.warning("%s cannot be loaded; the one before it stays: %s", successor.ref, error)
            await asyncio.sleep(_AGAIN_SECONDS)
