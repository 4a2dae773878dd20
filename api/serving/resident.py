"""Trained models in memory: loaded once, the least recently used dropped first."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from api.serving.batcher import Batcher
from store.tables import Checkpoint
from tasks.trained import Trained


@dataclass(frozen=True)
class Served:
    """A model in memory and the queue before it."""

    trained: Trained
    batcher: Batcher


@dataclass
class _Place:
    loading: "asyncio.Task[Served]"
    bytes: int = 0

    @property
    def idle(self) -> bool:
        """Whether nobody would miss the model right now."""
        loaded = self.loading.done() and not self.loading.cancelled()
        return loaded and not self.loading.result().batcher.busy


class Residents:
    """Models by checkpoint id, together no larger than `limit` bytes unless all of them are busy.

    The newest one is always kept, so a model above the limit is served alone. Lives on the event loop.
    """

    def __init__(
        self,
        limit: int,
        executor: Executor,
        *,
        measure: Callable[[Checkpoint], int],
        load: Callable[[Checkpoint], Trained],
        serve: Callable[[Trained], Batcher],
    ) -> None:
        """`measure` tells a model's bytes and `load` reads it; both block, so they run in `executor`."""
        self._limit, self._executor = limit, executor
        self._measure, self._load, self._serve = measure, load, serve
        self._places: OrderedDict[str, _Place] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory the models take, those being loaded included."""
        return sum(place.bytes for place in self._places.values())

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._places

    async def get(self, checkpoint: Checkpoint) -> Served:
        """The checkpoint's model; however many ask for it, it is loaded once."""
        place = self._places.get(checkpoint.id)
        if place is None:
            place = _Place(asyncio.create_task(self._fill(checkpoint)))
            self._places[checkpoint.id] = place
        self._places.move_to_end(checkpoint.id)
        if place.loading.done():
            return place.loading.result()
        return await asyncio.shield(place.loading)  # who leaves does not end it for the others

    def drop(self, checkpoint_ids: Iterable[str]) -> None:
        """Let these models go; whoever is being answered by one still is."""
        for checkpoint_id in checkpoint_ids:
            self._places.pop(checkpoint_id, None)

    async def _fill(self, checkpoint: Checkpoint) -> Served:
        loop = asyncio.get_running_loop()
        try:
            size = await loop.run_in_executor(self._executor, self._measure, checkpoint)
            self._make_room(checkpoint.id, size)
            trained = await loop.run_in_executor(self._executor, self._load, checkpoint)
        except BaseException:
            self._places.pop(checkpoint.id, None)
            raise
        return Served(trained, self._serve(trained))

    def _make_room(self, checkpoint_id: str, size: int) -> None:
        if checkpoint_id in self._places:  # not dropped meanwhile
            self._places[checkpoint_id].bytes = size
        for other, place in list(self._places.items()):
            if self.bytes <= self._limit:
                return
            if other != checkpoint_id and place.idle:
                del self._places[other]
