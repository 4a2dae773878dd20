"""Serving: from a model's name to predictions, without SQL for models in use."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch

from api.cache import Cache
from api.serving import measures, references
from api.serving.batcher import Batcher
from api.serving.loading import Loader
from api.serving.references import References
from api.serving.resident import Residents, Served
from api.settings import ApiSettings
from store.errors import NotFound
from store.models import Resolved
from store.session import Database
from tasks.base import Task
from tasks.trained import Trained

BATCH_SIZE = 128
"""Inputs per forward pass: beyond that throughput gains little, and everybody in the batch waits."""


class Ready(NamedTuple):
    """A model in memory, and the exact form of the ref it was asked for by, such as reviews@1."""

    ref: str
    served: Served

    @property
    def task(self) -> Task:
        return self.served.trained.task


class Serving:
    """Everything between a route and the models. Lives on the event loop; work happens in threads."""

    def __init__(self, database: Database, settings: ApiSettings) -> None:
        cache = Cache(database, settings.data_dir / "cache" / "weights", settings.resident_bytes)
        loader = Loader(database, cache, settings.predict_device)
        cores = os.cpu_count() or 1
        torch.set_num_threads(settings.predict_threads or cores)
        self._database, self._queue_size = database, settings.predict_queue
        self._look_ups = ThreadPoolExecutor(2, "look-up")
        self._loads = ThreadPoolExecutor(2, "load")
        self._reads = ThreadPoolExecutor(cores, "read")
        self._forwards = ThreadPoolExecutor(max(2, cores), "forward")
        self._references = References(self._look_up, self._look_ups)
        self.residents = Residents(
            settings.resident_bytes,
            self._loads,
            measure=loader.measure,
            load=loader.load,
            serve=self._serve,
        )
        measures.RESIDENT_BYTES.set_function(lambda: self.residents.bytes)
        measures.RESIDENT_MODELS.set_function(lambda: len(self.residents))

    async def find(self, project_id: str, ref: str) -> Ready:
        """The model that a ref means, loaded if need be; raises NotFound and Conflict like `references.find`."""
        found = await self.resolve(project_id, ref)
        while True:
            try:
                return Ready(found.ref, await self.residents.get(found.checkpoint))
            except NotFound:
                # A job discards its checkpoint when it has a better one: that is what the ref means by now.
                self._references.forget()
                newer = await self.resolve(project_id, ref)
                if newer.checkpoint.id == found.checkpoint.id:
                    raise
                found = newer

    async def resolve(self, project_id: str, ref: str) -> Resolved:
        """The checkpoint that a ref means; raises like `find`."""
        return await self._references.resolve(project_id, ref)

    async def predict(
        self, model: Ready, values: Sequence[Any], *, large: bool = False
    ) -> list[Any]:
        """A prediction for each input of a request, in their order; `large` ones are read off the event loop.

        Raises Invalid for inputs that the model cannot read, and Busy.
        """
        begun = perf_counter()
        inputs = await self._read(model.served.trained, values, large=large)
        predictions = await model.served.batcher.predict(inputs)
        took = perf_counter() - begun
        measures.of_model(model.task.name, model.ref).answered(len(inputs), took)
        return predictions

    async def _read(self, trained: Trained, values: Sequence[Any], *, large: bool) -> list[Any]:
        read = trained.codec.read_inputs
        if not large:
            return read(values)
        return await asyncio.get_running_loop().run_in_executor(self._reads, read, values)

    async def forget(self, checkpoint_ids: Sequence[str] = ()) -> None:
        """Look names up again, as they have changed, and free the models of deleted checkpoints."""
        self._references.forget()
        self.residents.drop(checkpoint_ids)

    def close(self) -> None:
        """End the threads; whoever still waits for them gets a cancellation."""
        for pool in (self._look_ups, self._loads, self._reads, self._forwards):
            pool.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, project_id: str, ref: str) -> Resolved:
        with self._database.transaction(read_only=True) as session:
            return references.find(session, project_id, ref)

    def _serve(self, trained: Trained) -> Batcher:
        return Batcher(
            partial(trained.predict, batch_size=BATCH_SIZE),
            self._forwards,
            batch_size=BATCH_SIZE,
            queue_size=self._queue_size,
            on_batch=measures.of_batches(trained.task.name).observe,
        )
