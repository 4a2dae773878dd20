"""Batches that are made ahead are those that would have been made, and nothing is left of their making."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import worker.feed
from models.base import Batch
from tasks.parts.columns import Columns, Dense, ragged
from tests.worker.shop import rows, texts
from tests.worker.trainings import Course, course, fingerprint, finished
from worker.encoded import load_columns, save_columns
from worker.feed import Ahead, feed
from worker.loop import fit

CPU = torch.device("cpu")
KINDS: dict[str, tuple[Any, ...]] = {
    "table": ("tabular-classification", rows(200).encode(), {"name": "mlp", "dropout": 0.3}),
    "texts": ("text-classification", texts(100).encode(), {"name": "text-cnn"}),
}


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any columns count as larger than memory; no thread may be left of it."""
    monkeypatch.setattr(worker.feed, "_SHARE", 0.0)
    yield
    assert not feeding()


def feeding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("feed")]


def on_disk(training: Course, folder: Path) -> Course:
    """The same training, its columns mapped."""
    save_columns([training.train.columns], path := folder / "columns")
    return training._replace(train=replace(training.train, columns=load_columns(path)))


class Broken(Columns):
    """Columns of which some cannot be read."""

    def batch(self, index: Tensor) -> Batch:
        if int(index[0]) == 2:
            raise OSError("a bad sector")
        return super().batch(index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_fed_ahead_has_the_same_weights(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    alone = fingerprint(finished(course(*KINDS[kind])).trained.learner)
    request.getfixturevalue("ahead")
    training = on_disk(course(*KINDS[kind]), tmp_path)
    next(reports := fit(*training, interval=0.0))
    assert feeding()
    reports.close()
    assert not feeding()
    assert fingerprint(finished(on_disk(course(*KINDS[kind]), tmp_path)).trained.learner) == alone


@pytest.mark.usefixtures("ahead")
def test_a_training_fed_ahead_goes_on_in_the_middle_of_an_epoch() -> None:
    whole, parts = (course(*KINDS["table"]) for _ in range(2))
    steps = fit(*parts, interval=0.0)
    state = [next(steps) for _ in range(5)][-1].state
    assert state.step_in_epoch == 5
    steps.close()
    finished(parts, state=state)
    assert fingerprint(parts.trained.learner) == fingerprint(finished(whole).trained.learner)


@pytest.mark.usefixtures("ahead")
def test_what_fails_ahead_fails_in_the_step_that_needed_it() -> None:
    columns = Broken((Dense(torch.arange(4.0)),))
    with feed(columns, index := torch.arange(4).split(1), CPU) as source:
        assert [source.batch(i).inputs[0].item() for i in index[:2]] == [0.0, 1.0]
        with pytest.raises(OSError, match="a bad sector"):
            source.batch(index[2])
        assert source.batch(index[3]).inputs[0].item() == 3.0


@pytest.mark.usefixtures("ahead")
def test_two_batches_are_made_before_they_are_asked_for_and_no_more() -> None:
    columns = Columns((ragged([[1], [2, 3], [4], [5], [6, 7]]),))
    taken: list[int] = []

    def coming() -> Iterator[Tensor]:
        for index in torch.arange(5).split(1):
            taken.append(int(index))
            yield index

    with feed(columns, coming(), CPU) as source:
        assert taken == [0, 1]
        tokens, lengths = source.batch(torch.tensor([0])).inputs
        assert (tokens.tolist(), lengths.tolist(), taken) == ([[1]], [1], [0, 1, 2])
        with pytest.raises(AssertionError, match="another batch than the next"):
            source.batch(torch.tensor([4]))


def test_small_columns_on_the_cpu_are_read_as_they_are() -> None:
    columns = Columns((Dense(torch.arange(4.0)),))
    with feed(columns, [], CPU) as source:
        assert source is columns
        assert not feeding()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_lie_in_pinned_memory() -> None:
    columns, device = Columns((Dense(torch.arange(8.0)),)), torch.device("cuda:0")
    with feed(columns, index := torch.arange(8).split(4), device) as source:
        assert isinstance(source, Ahead)
        batches = [source.batch(i) for i in index]
        assert all(batch.inputs[0].is_pinned() for batch in batches)
        moved = torch.cat([batch.to(device).inputs[0] for batch in batches])
        assert torch.equal(moved.cpu(), torch.arange(8.0))
    assert not feeding()
