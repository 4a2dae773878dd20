"""Dynamic batching: requests that arrive while a forward pass runs share the next one."""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from api.errors import Busy

Predict = Callable[[Sequence[Any]], list[Any]]
_Done = tuple[list[Any], float]
_Kind = tuple[int, int]

QUICK_SECONDS = 0.002
"""A pass this short may hold up the event loop: having a thread do it would take as long again."""
_PAUSE, _LEAST_PAUSE, _MOST_PAUSE = 0.1, 0.001, 0.01
"""How long those who were answered together may take to ask again: a share of the pass, and bounds in seconds."""
_REMEMBERED = 3
"""Passes by whose shortest one knows how long such passes take: any one may have been interrupted."""
_MOST_RETRY_SECONDS = 60


@dataclass(slots=True, eq=False)
class Request:
    """Inputs that wait for their predictions; times are those of `time.perf_counter`."""

    inputs: Sequence[Any]
    answer: asyncio.Future[list[Any]]
    bucket: int
    alone: bool = False
    """Whether it may share a batch no more, because one it was in failed."""
    asked: float = field(default_factory=perf_counter)
    begun: float = 0.0
    ended: float = 0.0


class Batcher:
    """Runs a blocking `predict`, one batch at a time, for callers on the event loop.

    A lone request runs at once: there is no window to wait for, since a busy model gives later
    requests time enough to gather. Only after a slow pass for several do the next ones wait, for a tenth of its
    time at the most, until as many have come: without that, the first to return would get a pass alone, and the others
    the one after it, again and again. Batches run in `executor`, those of a quick model on the event loop.
    """

    def __init__(
        self,
        predict: Predict,
        executor: Executor,
        *,
        batch_size: int,
        queue_size: int,
        size_of: Callable[[Any], int] | None = None,
        clock: Callable[[], float] = perf_counter,
        on_batch: Callable[[int], None] = lambda inputs: None,
    ) -> None:
        """Batches hold at most `batch_size` inputs, or one request that has more; `queue_size` inputs wait.

        Inputs share a batch when they are alike in `size_of`, as everybody pays for the largest.
        `clock` tells what a pass takes in a thread.
        """
        self._predict, self._executor, self._on_batch = predict, executor, on_batch
        self._batch_size, self._queue_size, self._size_of = batch_size, queue_size, size_of
        self._queue: deque[Request] = deque()
        self._waiting = 0
        self._running = False
        self._pause: asyncio.TimerHandle | None = None
        self._expected = 0
        """Requests that end the pause."""
        self._clock, self._pace = clock, 0.0
        self._took: dict[_Kind, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    @property
    def busy(self) -> bool:
        """Whether any request is worked on, or waits."""
        return bool(self._queue) or (self._running and self._pause is None)

    def learn(self, inputs: Sequence[Any], seconds: float) -> None:
        """Take note of what a pass for such inputs takes."""
        self._took[self._kind(inputs)].append(seconds)

    async def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Predictions for inputs that the codec has read. Raises Busy when too many wait already."""
        return await self.ask(inputs).answer

    def ask(self, inputs: Sequence[Any]) -> Request:
        """A request for predictions, which come as its `answer`. Raises Busy like `predict`."""
        if not self._has_room(len(inputs)):
            self._keep(request for request in self._queue if not request.answer.done())
        if not self._has_room(len(inputs)):
            raise Busy("Too many inputs wait for this model already.", self._retry_seconds())
        loop = asyncio.get_running_loop()
        request = Request(inputs, loop.create_future(), self._bucket(inputs))
        self._queue.append(request)
        self._waiting += len(inputs)
        if not self._running:
            self._running = True
            loop.call_soon(self._start)  # after all who came in this turn of the loop
        elif self._pause is not None and len(self._queue) >= self._expected:
            self._pause.cancel()
            self._end_pause()
        return request

    def _has_room(self, inputs: int) -> bool:
        return not self._queue or self._waiting + inputs <= self._queue_size

    def _bucket(self, inputs: Sequence[Any]) -> int:
        """Sizes of one bucket are less than a factor of two apart."""
        return max(map(self._size_of, inputs)).bit_length() if self._size_of else 0

    def _kind(self, inputs: Sequence[Any]) -> _Kind:
        """Batches of one kind take about as long as each other."""
        return self._bucket(inputs), len(inputs).bit_length()

    def _retry_seconds(self) -> int:
        """When those who wait now are done, at the pace of late."""
        return min(max(1, math.ceil(self._waiting * self._pace)), _MOST_RETRY_SECONDS)

    def _keep(self, requests: Iterable[Request]) -> None:
        self._queue = deque(requests)
        self._waiting = sum(len(request.inputs) for request in self._queue)

    def _start(self) -> None:
        """Begin the next batch, if any request waits."""
        batch = self._gather()
        self._running = bool(batch)
        if not batch:
            return
        inputs = [value for request in batch for value in request.inputs]
        self._on_batch(len(inputs))
        begun = perf_counter()
        for request in batch:
            request.begun = begun
        kind = self._kind(inputs)
        if min(self._took[kind], default=math.inf) <= QUICK_SECONDS:
            try:
                self._finish(batch, kind, self._run(inputs, perf_counter))
            except Exception as error:
                self._fail(batch, error)
            return
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._run, inputs, self._clock)
        work.add_done_callback(lambda done: self._hear(batch, kind, done))

    def _run(self, inputs: Sequence[Any], clock: Callable[[], float]) -> _Done:
        begun = clock()
        return self._predict(inputs), clock() - begun

    def _gather(self) -> list[Request]:
        """Who has waited longest, and those who may share its batch; the others stay in order."""
        batch: list[Request] = []
        others: list[Request] = []
        size = 0
        for request in self._queue:
            if request.answer.done():  # whoever asked may have gone
                continue
            if batch and not self._fits(batch[0], size, request):
                others.append(request)
                continue
            batch.append(request)
            size += len(request.inputs)
        self._keep(others)
        return batch

    def _fits(self, first: Request, size: int, request: Request) -> bool:
        if first.alone or request.alone or first.bucket != request.bucket:
            return False
        return size + len(request.inputs) <= self._batch_size

    def _hear(self, batch: list[Request], kind: _Kind, work: asyncio.Future[_Done]) -> None:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None:
            self._finish(batch, kind, work.result())
        else:
            self._fail(batch, error)

    def _finish(self, batch: list[Request], kind: _Kind, done: _Done) -> None:
        found, seconds = done
        self._took[kind].append(seconds)
        ended, start = perf_counter(), 0
        pace = (ended - batch[0].begun) / len(found)
        self._pace = 0.9 * self._pace + 0.1 * pace if self._pace else pace
        self._go_on_after(len(batch), ended - batch[0].begun)
        for request in batch:
            request.ended, stop = ended, start + len(request.inputs)
            _settle(request.answer, found[start:stop])
            start = stop

    def _fail(self, batch: list[Request], error: BaseException) -> None:
        self._go_on()
        if len(batch) == 1:
            _settle(batch[0].answer, error)
            return
        # Nobody is answered with the fault of a neighbour.
        for request in batch:
            request.alone = True
        self._keep([*batch, *self._queue])

    def _go_on(self) -> None:
        """Begin the next batch before the answers are sent, so that the model computes meanwhile."""
        asyncio.get_running_loop().call_soon(self._start)

    def _go_on_after(self, answered: int, seconds: float) -> None:
        """Like `_go_on`, after a pass for so many requests that took so long."""
        pause = min(_PAUSE * seconds, _MOST_PAUSE)
        if answered == 1 or len(self._queue) >= answered or pause < _LEAST_PAUSE:
            self._go_on()
            return
        self._expected = answered
        self._pause = asyncio.get_running_loop().call_later(pause, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._go_on()


def _settle(answer: asyncio.Future[list[Any]], found: list[Any] | BaseException) -> None:
    """Give the answer, unless nobody waits for it any more."""
    if answer.done():
        return
    if isinstance(found, BaseException):
        answer.set_exception(found)
    else:
        answer.set_result(found)
