"""Requests share forward passes, and nobody pays for it."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api.errors import Busy
from api.serving.batcher import Batcher


class Model:
    """A blocking model that answers n with n * n, and remembers its batches."""

    def __init__(self, seconds: float = 0.0, passes: int = 1_000_000) -> None:
        """After `passes` batches it stands still until more are released."""
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.passes = threading.Semaphore(passes)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        self.batches.append(list(inputs))
        assert self.passes.acquire(timeout=10)
        time.sleep(self.seconds)
        if -1 in inputs:
            raise ArithmeticError("no square")
        return [value * value for value in inputs]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def run(
    executor: ThreadPoolExecutor,
    model: Model,
    story: Callable[[Batcher], Coroutine[Any, Any, None]],
    batch_size: int = 64,
    queue_size: int = 1_000,
    **options: Any,
) -> None:
    async def told() -> None:
        batcher = Batcher(model, executor, batch_size=batch_size, queue_size=queue_size, **options)
        await story(batcher)
        await asyncio.sleep(0)
        assert not batcher.busy

    asyncio.run(told())


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


def test_requests_that_come_while_the_model_is_busy_share_its_next_pass(
    executor: ThreadPoolExecutor,
) -> None:
    model = Model(seconds=0.05)

    async def story(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.predict([0, -2]))
        await until(lambda: model.batches)
        answers = await asyncio.gather(*(batcher.predict([n, -n - 2]) for n in range(1, 50)))
        assert [await first, *answers] == [[n * n, (n + 2) ** 2] for n in range(50)]

    run(executor, model, story, batch_size=200)
    assert [len(batch) for batch in model.batches] == [2, 98]


def test_no_batch_grows_beyond_its_bound(executor: ThreadPoolExecutor) -> None:
    model = Model(seconds=0.005)

    async def story(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.predict([n] * 3) for n in range(20)))

    run(executor, model, story, batch_size=8)
    assert max(len(batch) for batch in model.batches) == 6
    assert sum(len(batch) for batch in model.batches) == 60


def test_a_request_larger_than_a_batch_runs_by_itself(executor: ThreadPoolExecutor) -> None:
    model = Model(seconds=0.005)

    async def story(batcher: Batcher) -> None:
        large = list(range(100))
        answers = await asyncio.gather(
            batcher.predict([1] * 5), batcher.predict(large), batcher.predict([2] * 5)
        )
        assert answers == [[1] * 5, [n * n for n in large], [4] * 5]

    run(executor, model, story, batch_size=8)
    assert [len(batch) for batch in model.batches] == [5, 100, 5]


def test_a_lone_request_does_not_wait_for_company(executor: ThreadPoolExecutor) -> None:
    async def story(batcher: Batcher) -> None:
        for n in range(5):
            answer = asyncio.ensure_future(batcher.predict([n]))
            await asyncio.sleep(0)
            assert batcher.busy, "it is given to the model in the turn of the loop it came in"
            assert await answer == [n * n]

    run(executor, Model(), story)


def test_a_full_queue_refuses_and_takes_again_once_there_is_room(
    executor: ThreadPoolExecutor,
) -> None:
    model = Model(passes=0)

    async def story(batcher: Batcher) -> None:
        running = asyncio.ensure_future(batcher.predict([1]))
        await until(lambda: model.batches)
        waiting = [asyncio.ensure_future(batcher.predict([n])) for n in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await batcher.predict([4])
        assert refused.value.headers == {"Retry-After": "1"}
        model.passes.release(10)
        assert await asyncio.gather(running, *waiting) == [[1], [4], [9]]
        assert await batcher.predict([4]) == [16]

    run(executor, model, story, queue_size=2)


def test_cancelled_requests_leave_the_queue_and_make_room(executor: ThreadPoolExecutor) -> None:
    model = Model(passes=0)

    async def story(batcher: Batcher) -> None:
        running = asyncio.ensure_future(batcher.predict([1]))
        await until(lambda: model.batches)
        leaving = [asyncio.ensure_future(batcher.predict([n])) for n in (2, 3)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        staying = asyncio.ensure_future(batcher.predict([4]))
        await asyncio.sleep(0)
        model.passes.release(10)
        assert await asyncio.gather(running, staying) == [[1], [16]]

    run(executor, model, story, queue_size=2)
    assert model.batches == [[1], [4]]


def test_whoever_leaves_during_the_pass_does_not_disturb_the_others(
    executor: ThreadPoolExecutor,
) -> None:
    model = Model(passes=1)

    async def story(batcher: Batcher) -> None:
        tasks = [asyncio.ensure_future(batcher.predict([0]))]
        await until(lambda: model.batches)
        tasks += [asyncio.ensure_future(batcher.predict([n])) for n in range(1, 4)]
        await until(lambda: len(model.batches) == 2)
        tasks[2].cancel()
        model.passes.release()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [[0], [1], [9]]
        assert isinstance(found[2], asyncio.CancelledError)

    run(executor, model, story)
    assert model.batches == [[0], [1, 2, 3]]


def test_an_input_that_breaks_the_model_fails_alone(executor: ThreadPoolExecutor) -> None:
    model = Model(seconds=0.01)

    async def story(batcher: Batcher) -> None:
        requests = [[0], [1], [-1], [2, 3], [4]]
        answers = await asyncio.gather(
            *(batcher.predict(inputs) for inputs in requests), return_exceptions=True
        )
        assert answers[:2] == [[0], [1]]
        assert isinstance(answers[2], ArithmeticError)
        assert answers[3:] == [[4, 9], [16]]
        assert await batcher.predict([5]) == [25]

    run(executor, model, story)


def test_one_model_runs_one_pass_at_a_time(executor: ThreadPoolExecutor) -> None:
    running: list[int] = []

    class Watched(Model):
        def __call__(self, inputs: Sequence[Any]) -> list[Any]:
            running.append(1)
            assert sum(running) == 1
            try:
                return super().__call__(inputs)
            finally:
                running.append(-1)

    async def story(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.predict([n]) for n in range(100)))

    run(executor, Watched(seconds=0.001), story, batch_size=5)


def test_inputs_share_a_pass_only_with_those_of_their_size(executor: ThreadPoolExecutor) -> None:
    model = Model(passes=1)

    async def story(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.predict([1]))
        await until(lambda: model.batches)
        sizes = [500, 5, 400, 6, 300, 7]
        waiting = [asyncio.ensure_future(batcher.predict([size])) for size in sizes]
        await asyncio.sleep(0)
        model.passes.release(10)
        assert await first == [1]
        assert await asyncio.gather(*waiting) == [[size * size] for size in sizes]

    run(executor, model, story, size_of=lambda value: value)
    assert model.batches == [[1], [500, 400, 300], [5, 6, 7]], "who waited longest chooses the size"


def test_inputs_are_counted_not_requests(executor: ThreadPoolExecutor) -> None:
    model = Model(passes=0)

    async def story(batcher: Batcher) -> None:
        running = asyncio.ensure_future(batcher.predict([1] * 50))
        await until(lambda: model.batches)
        waiting = asyncio.ensure_future(batcher.predict([2] * 6))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.predict([3] * 5)
        last = asyncio.ensure_future(batcher.predict([3] * 4))
        await asyncio.sleep(0)
        model.passes.release(10)
        assert await asyncio.gather(running, waiting, last) == [[1] * 50, [4] * 6, [9] * 4]

    run(executor, model, story, queue_size=10)


def test_whoever_is_refused_learns_how_long_those_who_wait_will_take(
    executor: ThreadPoolExecutor,
) -> None:
    model = Model(seconds=0.2, passes=1)

    async def story(batcher: Batcher) -> None:
        await batcher.predict([1])
        running = asyncio.ensure_future(batcher.predict([1]))
        await until(lambda: len(model.batches) == 2)
        waiting = asyncio.ensure_future(batcher.predict([2] * 20))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await batcher.predict([3])
        assert 4 <= int(refused.value.headers["Retry-After"]) <= 60
        model.passes.release(10)
        await asyncio.gather(running, waiting)

    run(executor, model, story, queue_size=20)


def test_a_quick_model_is_not_handed_to_a_thread_and_a_slow_one_is(
    executor: ThreadPoolExecutor,
) -> None:
    threads: list[int] = []

    class Watched(Model):
        def __call__(self, inputs: Sequence[Any]) -> list[Any]:
            threads.append(threading.get_ident())
            return super().__call__(inputs)

    model = Watched()

    async def story(batcher: Batcher) -> None:
        here = threading.get_ident()
        await batcher.predict([1])
        assert threads.pop() != here, "nobody knows yet how long it takes"
        batcher.learn([1], 0.0001)
        await batcher.predict([1])
        assert threads.pop() == here
        await batcher.predict([1] * 64)
        assert threads.pop() != here, "many inputs may take longer"
        for _ in range(3):
            batcher.learn([1], 0.1)
        await batcher.predict([1])
        assert threads.pop() != here

    run(executor, model, story)


def test_a_quick_model_that_fails_goes_on(executor: ThreadPoolExecutor) -> None:
    model = Model()

    async def story(batcher: Batcher) -> None:
        for inputs in ([0], [0, 0], [0] * 4):
            batcher.learn(inputs, 0.0001)
        found = await asyncio.gather(
            *(batcher.predict([n]) for n in (1, -1, 2)), return_exceptions=True
        )
        assert [found[0], found[2]] == [[1], [4]]
        assert isinstance(found[1], ArithmeticError)
        assert await batcher.predict([3]) == [9]

    run(executor, model, story)


def test_those_who_were_answered_together_ask_again_together(executor: ThreadPoolExecutor) -> None:
    model = Model(seconds=0.05)

    async def story(batcher: Batcher) -> None:
        async def client() -> None:
            for _ in range(6):
                assert await batcher.predict([3]) == [9]
                await asyncio.sleep(0.001)

        await asyncio.gather(*(client() for _ in range(4)))

    run(executor, model, story)
    assert [len(batch) for batch in model.batches] == [4] * 6


def test_who_comes_alone_after_a_crowd_waits_for_a_moment_only(
    executor: ThreadPoolExecutor,
) -> None:
    model = Model(seconds=0.05)

    async def story(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.predict([n]) for n in range(4)))
        assert not batcher.busy
        for _ in range(2):
            assert await batcher.predict([5]) == [25]

    run(executor, model, story)
    assert [len(batch) for batch in model.batches] == [4, 1, 1]
