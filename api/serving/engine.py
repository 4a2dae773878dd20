"""Serving: from a model's name to predictions, without SQL for models in use."""

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from api.cache import Cache
from api.errors import Busy
from api.look_ups import LookUps
from api.serving import measures, references, timing
from api.serving.batcher import Batcher, Request
from api.serving.loading import Loader
from api.serving.onnx import Exporter
from api.serving.resident import Residents, Served, Wanted
from api.serving.runtimes import Runtimes, as_it_stands, in_bfloat16
from api.serving.succession import Succession
from api.settings import ApiSettings
from models.parts import memory
from store.errors import NotFound
from store.models import Resolved
from store.session import Database
from store.tables import Checkpoint
from tasks.base import Task
from tasks.text_generation import GenerationInput, Piece, write
from tasks.trained import Explained, Trained

log = logging.getLogger(__name__)

BATCH_SIZE = 128
"""Inputs per forward pass: beyond that throughput gains little, and everybody in the batch waits."""
REMEMBERED_SECONDS, _AHEAD = 0.8, 0.5
"""How long a reference is remembered: a new version or alias shows within a second."""
MOST_STREAMS = 64
"""Texts that a process writes at a time."""
_WARM_UPS = 3
_OUT_OF_MEMORY_SECONDS = 5


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
        # Threads of processes that share cores would wait for each other.
        cores = max(1, _cores() // settings.processes)
        torch.set_num_threads(settings.predict_threads or cores)
        self._database, self._queue_size = database, settings.predict_queue
        self._look_ups = ThreadPoolExecutor(2, "look-up")
        self._loads = ThreadPoolExecutor(2, "load")
        self._reads = ThreadPoolExecutor(cores, "read")
        self._forwards = ThreadPoolExecutor(max(2, cores), "forward")
        self._references = LookUps(
            self._look_up, self._look_ups, seconds=REMEMBERED_SECONDS, ahead=_AHEAD
        )
        self._loader = Loader(database, cache, settings.predict_device)
        self._streams = 0
        self._bits, self._exporter = settings.predict_precision, None
        if settings.predict_runtime == "onnx":
            folder = settings.data_dir / "cache" / "networks"
            self._exporter = Exporter(folder, int8=self._bits == "int8")
        self.residents = Residents(
            settings.resident_bytes,
            self._loads,
            measure=self._loader.measure,
            load=self._load,
            idle_seconds=settings.resident_seconds,
        )
        self._succession = Succession(self.residents, self.resolve)
        measures.RESIDENT_BYTES.set_function(lambda: self.residents.bytes)
        measures.RESIDENT_MODELS.set_function(lambda: len(self.residents))

    async def find(self, project_id: str, ref: str) -> Ready:
        """The model that a ref means, loaded if need be; raises NotFound and Conflict like `references.find`.

        What a name newly stands for is loaded before it takes over.
        """
        found = await self.resolve(project_id, ref)
        while True:
            found = await self._succession.choose(project_id, ref, found)
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
        return await self._references.get((project_id, ref))

    async def predict(
        self, model: Ready, values: Sequence[Any], *, large: bool = False
    ) -> list[Any]:
        """A prediction for each input of a request, in their order; `large` ones are read off the event loop.

        Raises Invalid for inputs that the model cannot read, and Busy.
        """
        return await self._ask("predictions", model, values, large=large)

    async def embed(
        self, model: Ready, values: Sequence[Any], *, large: bool = False
    ) -> list[Tensor]:
        """What the model's network makes of each input before a head answers, a vector (D,) float32.

        Raises NotFound for a model without such vectors, and otherwise like `predict`.
        """
        return await self._ask("embeddings", model, values, large=large)

    async def explain(
        self, model: Ready, values: Sequence[Any], *, large: bool = False
    ) -> list[Explained]:
        """A prediction for each input, and where in it is what speaks for each output.

        Raises NotFound for a model that does not know, and otherwise like `predict`.
        """
        return await self._ask("explanations", model, values, large=large)

    async def _ask(
        self, wanted: Wanted, model: Ready, values: Sequence[Any], *, large: bool
    ) -> list[Any]:
        queue = model.served.queues.get(wanted)
        if queue is None:
            raise NotFound(f"model with {wanted}", model.ref)
        begun, measured = perf_counter(), measures.of_model(model.task.name, model.ref)
        try:
            inputs = await self._read(model.served.trained, values, large=large)
            request = queue.ask(inputs)
            predictions = await self._answer(model.served, request)
        except BaseException as error:
            measured.failed(error)
            raise
        queued = request.begun - request.asked
        measured.answered(len(inputs), perf_counter() - begun, queued)
        timing.spend("queue", queued)
        timing.spend("model", request.ended - request.begun)
        return predictions

    async def write(self, model: Ready, value: Any, until: float | None) -> AsyncIterator[Piece]:
        """What a model of texts goes on with after an input, as it is written, `until` then by the loop's clock.

        Each token is a turn in the threads of all predictions, so that none waits longer than that. Whoever
        stops asking for pieces ends the work. Raises Invalid and Busy before there are any.
        """
        (given,) = await self._read(model.served.trained, [value], large=True)
        if self._streams >= MOST_STREAMS:
            raise Busy("Too many texts are being written already.")
        return self._pieces(model, given, math.inf if until is None else until)

    async def _pieces(
        self, model: Ready, given: GenerationInput, until: float
    ) -> AsyncIterator[Piece]:
        begun, measured = perf_counter(), measures.of_model(model.task.name, model.ref)
        pieces, loop = write(model.served.trained, given), asyncio.get_running_loop()
        self._streams += 1
        try:
            while (
                piece := await loop.run_in_executor(self._forwards, next, pieces, None)
            ) is not None:
                if late := piece.finish_reason is None and loop.time() >= until:
                    piece = piece._replace(finish_reason="time")
                yield piece
                if late:
                    break
        except BaseException as error:
            measured.failed(error)
            raise
        else:
            measured.answered(1, perf_counter() - begun, 0.0)
        finally:
            self._streams -= 1

    async def _answer(self, served: Served, request: Request) -> list[Any]:
        """The request's predictions. Raises Busy when memory did not suffice for it even alone."""
        try:
            return await request.answer
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
        self.residents.shed(besides=served)
        raise Busy("Memory does not suffice for this request now.", _OUT_OF_MEMORY_SECONDS)

    async def _read(self, trained: Trained, values: Sequence[Any], *, large: bool) -> list[Any]:
        read = trained.codec.read_inputs
        if not large:
            return read(values)
        return await asyncio.get_running_loop().run_in_executor(self._reads, read, values)

    async def forget(self, checkpoint_ids: Sequence[str] = ()) -> None:
        """Look names up again, as they have changed, and free the models of deleted checkpoints."""
        self._references.forget()
        self.residents.drop(checkpoint_ids)

    async def renew(self, project_id: str, ref: str) -> None:
        """Look names up again, as this one has changed; return when what it means now has taken over."""
        await self.forget()
        with suppress(NotFound):  # already deleted again
            await self._succession.complete(project_id, ref, await self.resolve(project_id, ref))

    def close(self) -> None:
        """End the threads; whoever still waits for them gets a cancellation."""
        for pool in (self._look_ups, self._loads, self._reads, self._forwards):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._exporter is not None:
            self._exporter.close()

    def _look_up(self, asked: tuple[str, str]) -> Resolved:
        with self._database.transaction(read_only=True) as session:
            return references.find(session, *asked)

    def _load(self, checkpoint: Checkpoint) -> Served:
        """The model with a queue before it, warmed up: its first request is as fast as any."""
        trained = self._accelerated(self._loader.load(checkpoint), checkpoint)
        queues: dict[Wanted, Batcher] = {"predictions": self._queue(trained, trained.predict)}
        if trained.embeds:
            queues["embeddings"] = self._queue(trained, trained.embed)
        if trained.explains:
            queues["explanations"] = self._queue(trained, trained.explain)
        served = Served(trained, queues)
        _warm_up(served)
        return served

    def _queue(self, trained: Trained, answer: Callable[..., list[Any]]) -> Batcher:
        """Requests for answers of one kind share passes with each other."""
        return Batcher(
            partial(answer, batch_size=BATCH_SIZE),
            self._forwards,
            batch_size=BATCH_SIZE,
            queue_size=self._queue_size,
            size_of=trained.codec.length,
            # A processor that other threads use at the same time makes no model slow.
            clock=thread_time if trained.device.type == "cpu" else perf_counter,
            on_batch=measures.of_batches(trained.task.name).observe,
        )

    def _accelerated(self, trained: Trained, checkpoint: Checkpoint) -> Trained:
        """The model with other ways to compute it than torch's own in float32, as the settings allow."""
        ways = [] if self._bits == "float32" else [in_bfloat16(trained)]
        blank = trained.codec.blank()
        exporter = self._exporter if blank is not None and trained.device.type == "cpu" else None
        if not ways and exporter is None:
            return trained
        runtimes = Runtimes(as_it_stands(trained), ways)
        if exporter is not None:
            sample = trained.codec.encode_inputs(trained.codec.read_inputs([blank]))
            exporter.submit(self._loader.source(checkpoint), sample, runtimes.add)
        return replace(trained, forward=runtimes)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _warm_up(served: Served) -> None:
    """Predict for a blank input until its passes are what they will be; raises only for want of memory."""
    trained = served.trained
    blank = trained.codec.blank()
    if blank is None:
        return
    try:
        for _ in range(_WARM_UPS):
            inputs, begun = trained.codec.read_inputs([blank]), perf_counter()
            trained.predict(inputs)
            served.queues["predictions"].learn(inputs, perf_counter() - begun)
    except Exception as error:
        if memory.ran_out(error):
            raise
        log.warning("a model for %s does not warm up: %s", trained.task.name, error)
