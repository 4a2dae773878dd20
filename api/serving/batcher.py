"""Dynamic batching: requests that arrive while a forward pass runs share the next one."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from api.errors import Busy

Predict = Callable[[Sequence[Any]], list[Any]]


class _Request(NamedTuple):
    inputs: Sequence[Any]
    answer: asyncio.Future[list[Any]]
    alone: bool = False
    """Whether it may share a batch no more, because one it was in failed."""


class Batcher:
    """Runs a blocking `predict` in `executor`, one batch at a time, for callers on the event loop.

    A lone request runs at once: there is no window to wait for, since a busy model gives later
    requests time enough to gather.
    """

    def __init__(
        self,
        predict: Predict,
        executor: Executor,
        *,
        batch_size: int,
        queue_size: int,
        on_batch: Callable[[int], None] = lambda inputs: None,
    ) -> None:
        """Batches hold at most `batch_size` inputs, or one request that has more; `queue_size` requests wait."""
        self._predict, self._executor, self._on_batch = predict, executor, on_batch
        self._batch_size, self._queue_size = batch_size, queue_size
        self._queue: deque[_Request] = deque()
        self._running = False

    @property
    def busy(self) -> bool:
        """Whether any request is worked on."""
        return self._running

    async def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Predictions for inputs that the codec has read. Raises Busy when too many requests wait already."""
        if len(self._queue) >= self._queue_size:
            self._drop_cancelled()
        if len(self._queue) >= self._queue_size:
            raise Busy("Too many requests wait for this model already.")
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(inputs, answer))
        if not self._running:
            self._start()
        return await answer

    def _drop_cancelled(self) -> None:
        self._queue = deque(request for request in self._queue if not request.answer.done())

    def _start(self) -> None:
        """Begin the next batch, if any request waits."""
        batch = self._gather()
        self._running = bool(batch)
        if not batch:
            return
        inputs = [value for request in batch for value in request.inputs]
        self._on_batch(len(inputs))
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._predict, inputs)
        work.add_done_callback(lambda done: self._finish(batch, done))

    def _gather(self) -> list[_Request]:
        batch: list[_Request] = []
        size = 0
        while self._queue and (not batch or self._fits(batch[0], size, self._queue[0])):
            request = self._queue.popleft()
            if not request.answer.done():  # whoever asked may have gone
                batch.append(request)
                size += len(request.inputs)
        return batch

    def _fits(self, first: _Request, size: int, request: _Request) -> bool:
        return not (first.alone or request.alone) and size + len(request.inputs) <= self._batch_size

    def _finish(self, batch: list[_Request], work: asyncio.Future[list[Any]]) -> None:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is not None and len(batch) > 1:
            # Nobody is answered with the fault of a neighbour.
            self._queue.extendleft(request._replace(alone=True) for request in reversed(batch))
            self._start()
            return
        self._start()  # before the answers, so that the model computes while they are sent
        if error is not None:
            _settle(batch[0].answer, error)
            return
        found, start = work.result(), 0
        for request in batch:
            stop = start + len(request.inputs)
            _settle(request.answer, found[start:stop])
            start = stop


def _settle(answer: asyncio.Future[list[Any]], found: list[Any] | BaseException) -> None:
    """Give the answer, unless nobody waits for it any more."""
    if answer.done():
        return
    if isinstance(found, BaseException):
        answer.set_exception(found)
    else:
        answer.set_result(found)
