"""What a model's name stands for, remembered for a moment so that busy models need no SQL."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from time import monotonic
from typing import NamedTuple

from sqlalchemy.orm import Session

from store import jobs, models
from store.errors import Conflict, NotFound
from store.models import Resolved

REFRESH_SECONDS = 0.4
"""From this age on, what is remembered is looked up again while it still serves."""
STALE_SECONDS = 0.8
"""From this age on, it serves no more: a new version or alias shows within a second."""
REMEMBERED = 4_096


def find(session: Session, project_id: str, ref: str) -> Resolved:
    """The checkpoint behind a ref. Raises NotFound, and Conflict for a job that has none."""
    try:
        return models.resolve(session, project_id, ref)
    except NotFound:
        if not ref.startswith("job_") or "@" in ref:
            raise
        job = jobs.get(session, project_id, ref)
        raise Conflict(
            f"Job {ref} has no checkpoint to predict with; it is {jobs.shown_status(job)}."
            if job.kind == "train"
            else f"Job {ref} is no training, so it makes no model."
        ) from None


_Key = tuple[str, str]


class _Known(NamedTuple):
    found: Resolved
    at: float


class References:
    """Resolves (project, ref) on the event loop; one look-up at a time for each."""

    def __init__(self, look_up: Callable[[str, str], Resolved], executor: Executor) -> None:
        """`look_up` asks the database; it blocks, so it runs in `executor`."""
        self._look_up, self._executor = look_up, executor
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._looking: dict[_Key, asyncio.Task[Resolved]] = {}

    async def resolve(self, project_id: str, ref: str) -> Resolved:
        """The checkpoint behind a ref. Raises what `store.models.resolve` raises."""
        key = (project_id, ref)
        known = self._known.get(key)
        if known is None:
            return await asyncio.shield(self._refresh(key))
        age = monotonic() - known.at
        if age < REFRESH_SECONDS:
            return known.found
        refresh = self._refresh(key)
        return known.found if age < STALE_SECONDS else await asyncio.shield(refresh)

    def forget(self) -> None:
        """Look everything up again, look-ups under way included."""
        self._known.clear()
        self._looking.clear()

    def _refresh(self, key: _Key) -> asyncio.Task[Resolved]:
        if key not in self._looking:
            task = asyncio.create_task(self._ask(key))
            # Nobody may be waiting for a refresh; a failure of it is told to the next who asks.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._looking[key] = task
        return self._looking[key]

    async def _ask(self, key: _Key) -> Resolved:
        asked, loop = monotonic(), asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._executor, self._look_up, *key)
        except BaseException:
            self._end(key, None)
            raise
        self._end(key, _Known(found, asked))
        return found

    def _end(self, key: _Key, known: _Known | None) -> None:
        """Remember what the current look-up found, unless it was begun before `forget`."""
        if self._looking.get(key) is not asyncio.current_task():
            return
        del self._looking[key]
        self._known.pop(key, None)
        if known is not None:
            self._known[key] = known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
