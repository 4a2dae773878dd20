"""Trained models in memory: loaded once, the least recently used dropped first."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

from api.errors import Busy
from api.serving.batcher import Batcher
from models.parts import memory
from store.tables import Checkpoint
from tasks.trained import Trained

Wanted = Literal["predictions", "embeddings", "explanations"]

_RELOAD_SECONDS = 5
"""When to ask again for a model that memory did not suffice for."""


@dataclass(frozen=True)
class Served:
    """A model in memory, and a queue for each thing that it can be asked for."""

    trained: Trained
    queues: Mapping[Wanted, Batcher]

    @property
    def busy(self) -> bool:
        """Whether any request is worked on, or waits."""
        return any(queue.busy for queue in self.queues.values())


@dataclass
class _Place:
    loading: "asyncio.Task[Served]"
    bytes: int = 0
    used: float = field(default_factory=monotonic)

    @property
    def ready(self) -> bool:
        done = self.loading.done() and not self.loading.cancelled()
        return done and self.loading.exception() is None

    @property
    def idle(self) -> bool:
        """Whether nobody would miss the model right now."""
        return self.ready and not self.loading.result().busy


class Residents:
    """Models by checkpoint id, together no larger than `limit` bytes unless all of them are busy.

    The newest one is always kept, so a model above the limit is served alone; one that nobody asked for
    in `idle_seconds` goes (0: stays). Lives on the event loop.
    """

    def __init__(
        self,
        limit: int,
        executor: Executor,
        *,
        measure: Callable[[Checkpoint], int],
        load: Callable[[Checkpoint], Served],
        idle_seconds: float = 0,
    ) -> None:
        """`measure` tells a model's bytes and `load` reads it; both block, so they run in `executor`."""
        self._limit, self._executor, self._idle_seconds = limit, executor, idle_seconds
        self._measure, self._load = measure, load
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def bytes(self) -> int:
        """Memory the models take, those being loaded included."""
        return sum(place.bytes for place in self._places.values())

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._places

    def ready(self, checkpoint_id: str) -> bool:
        """Whether the model can answer at once."""
        place = self._places.get(checkpoint_id)
        return place is not None and place.ready

    async def get(self, checkpoint: Checkpoint) -> Served:
        """The checkpoint's model; however many ask for it, it is loaded once.

        Raises Busy when memory does not suffice for it now.
        """
        place = self._places.get(checkpoint.id)
        if place is None:
            place = _Place(asyncio.create_task(self._fill(checkpoint)))
            self._places[checkpoint.id] = place
        place.used = monotonic()
        self._places.move_to_end(checkpoint.id)
        if place.loading.done():
            return place.loading.result()
        return await asyncio.shield(place.loading)  # who leaves does not end it for the others

    def drop(self, checkpoint_ids: Iterable[str]) -> None:
        """Let these models go; whoever is being answered by one still is."""
        for checkpoint_id in checkpoint_ids:
            self._places.pop(checkpoint_id, None)
        memory.give_back()

    def shed(self, besides: Served | None = None) -> None:
        """Let every idle model go, as memory ran out, `besides` the one that needs it."""
        self.drop(
            [
                checkpoint_id
                for checkpoint_id, place in self._places.items()
                if place.idle and place.loading.result() is not besides
            ]
        )

    async def _fill(self, checkpoint: Checkpoint) -> Served:
        loop = asyncio.get_running_loop()
        try:
            size = await loop.run_in_executor(self._executor, self._measure, checkpoint)
            self._make_room(checkpoint.id, size)
            served = await loop.run_in_executor(self._executor, self._load, checkpoint)
        except BaseException as error:
            self._places.pop(checkpoint.id, None)
            if not memory.ran_out(error):
                raise
        else:
            self._look_later()
            return served
        self.shed()
        raise Busy("Memory does not suffice to load this model now.", _RELOAD_SECONDS)

    def _make_room(self, checkpoint_id: str, size: int) -> None:
        if checkpoint_id in self._places:  # not dropped meanwhile
            self._places[checkpoint_id].bytes = size
        for other, place in list(self._places.items()):
            if self.bytes <= self._limit:
                return
            if other != checkpoint_id and place.idle:
                del self._places[other]

    def _look_later(self) -> None:
        """See to it that models which nobody asks for any more are noticed."""
        if self._idle_seconds and self._places and self._next_look is None:
            loop, longest = asyncio.get_running_loop(), min(p.used for p in self._places.values())
            wait = max(0.1, longest + self._idle_seconds - monotonic())
            self._next_look = loop.call_later(wait, self._drop_unused)

    def _drop_unused(self) -> None:
        self._next_look = None
        last = monotonic() - self._idle_seconds
        self.drop([i for i, place in self._places.items() if place.idle and place.used <= last])
        self._look_later()
