"""When checkpoints are due: often enough to lose little, and seldom enough to cost little."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from tests.worker.shop import Shop, rows
from tests.worker.trainings import course
from worker.checkpoints import Checkpoints, Position
from worker.loop import State

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 8}


def idle(seconds: float) -> Callable[..., None]:
    return lambda *_: time.sleep(seconds)


def busy(seconds: float) -> Callable[..., None]:
    def work(*_: Any) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    return work


@contextmanager
def writing(shop: Shop, publish: Callable[..., None], **settings: float) -> Iterator[float]:
    """After how many seconds the next checkpoint is due, when writing one takes what `publish` takes."""
    training = course(TABLE, rows(60).encode(), SMALL)
    learner, codec = training.trained.learner, training.trained.codec
    job = shop.submit(shop.upload(TABLE, rows(60)), SMALL)
    with (
        patch.object(Checkpoints, "_publish", publish),
        Checkpoints(shop.database, shop.settings.model_copy(update=settings), job, codec) as kept,
    ):
        taken_at = time.monotonic()
        kept.save(learner, Position(State(), 0.0))
        kept.wait()
        yield kept._due - taken_at


def test_what_is_lost_by_a_crash_is_bounded_by_the_time_between_two_checkpoints(
    small_shop: Shop,
) -> None:
    settings = {"checkpoint_seconds": 30.0, "checkpoint_share": 1.0}
    with writing(small_shop, idle(0.0), **settings) as quick:
        assert quick == pytest.approx(30.0, abs=0.3)
    # What is being written is not yet safe: the next one is due the sooner, the longer that takes.
    with writing(small_shop, idle(0.5), **settings) as slow:
        assert slow == pytest.approx(29.5, abs=0.3)


def test_checkpoints_that_cost_much_come_less_often(small_shop: Shop) -> None:
    with writing(small_shop, busy(0.2), checkpoint_seconds=1.0, checkpoint_share=0.01) as expensive:
        assert 20.0 <= expensive < 40.0
    with writing(small_shop, busy(0.2), checkpoint_seconds=1.0, checkpoint_share=0.1) as cheaper:
        assert 2.0 <= cheaper < 4.0


def test_waiting_for_the_database_costs_the_training_nothing(small_shop: Shop) -> None:
    with writing(small_shop, idle(0.5), checkpoint_seconds=3.0, checkpoint_share=0.01) as due:
        assert due == pytest.approx(2.5, abs=0.3)


def test_the_copy_of_a_best_epoch_counts_as_a_cost(small_shop: Shop) -> None:
    training = course(TABLE, rows(60).encode(), SMALL)
    learner, codec = training.trained.learner, training.trained.codec
    job = small_shop.submit(small_shop.upload(TABLE, rows(60)), SMALL)
    settings = small_shop.settings.model_copy(
        update={"checkpoint_seconds": 0.0, "checkpoint_share": 0.01}
    )
    with (
        patch.object(Checkpoints, "_publish", idle(0.0)),
        patch("worker.snapshots.take_weights", side_effect=idle(0.1)),
        Checkpoints(small_shop.database, settings, job, codec) as kept,
    ):
        for _ in range(2):
            kept.hold_best(learner, Position(State(), 0.0))
        with patch("worker.snapshots.take"):
            taken_at = time.monotonic()
            kept.save(learner, Position(State(), 0.0))
        kept.wait()
        assert kept._due - taken_at >= 20.0
