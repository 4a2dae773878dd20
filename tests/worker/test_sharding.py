"""A learner that several processes hold in parts: real processes, real gloo, real workers that are killed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import jobs
from store.tables import Job
from tasks import catalog
from tests.worker.crew import gone
from tests.worker.ensemble import (
    PAIRS,
    apart,
    gather,
    learn_in_parts,
    learn_in_parts_and_go_on,
    place,
    same,
    told,
    training,
    weights,
)
from tests.worker.shop import shop_in
from tests.worker.test_devices import HOURS, Yard
from worker.sharding import Sharded

CASES = [
    *(pair for pair in PAIRS if catalog.task_named(pair.split("/")[0]).divides),
    "pieces and class weights",
    "a piece for each example",
    "clipping",
    "one example a step",
    "gradual unfreezing",
    "a pull",
    "a weight without a gradient",
]
IN_PARTS = {"resources": {"devices": 2, "sharded": True}}
SECONDS = {"epochs": 30, "batch_size": 16}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have learned every case in parts."""
    folder = tmp_path_factory.mktemp("parts")
    gather(2, folder, learn_in_parts, CASES, Sharded)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_in_parts_what_one_learns(case: str, pair: Path, lone: Path) -> None:
    alone, both = weights(lone, case, 0), weights(pair, case, 0)
    start = training(case).trained.learner.state_dict()
    learned = max(apart(alone[name], start[name]) for name in alone)
    assert max(apart(both[name], alone[name]) for name in alone) < learned / 1_000
    (state, points), (as_alone, expected) = told(pair, case, 0), told(lone, case, 0)
    assert (state["step"], state["epoch"]) == (as_alone["step"], as_alone["epoch"])
    assert state["metrics"]["validation"] == pytest.approx(
        as_alone["metrics"]["validation"], rel=1e-3, abs=1e-4
    )
    assert [step for step, _, _ in points] == [step for step, _, _ in expected]
    assert told(pair, case, 1)[0] == state, "the others know what rank 0 knows"


@pytest.mark.parametrize("case", ["image-classification/vit", "image-classification/resnet"])
def test_each_of_two_processes_holds_half_of_the_weights_and_of_the_optimizers_memory(
    case: str, pair: Path
) -> None:
    for rank in range(2):
        held, whole = zip(*json.loads(place(pair, case, rank, "held").read_text()), strict=True)
        assert sum(held) / sum(whole) == pytest.approx(0.5, abs=0.01)


def test_three_processes_hold_uneven_parts_and_go_on_with_the_same_bits(tmp_path: Path) -> None:
    """With dropout and batch statistics, and widths that are not divisible by three."""
    gather(3, tmp_path, learn_in_parts_and_go_on, ["noise"], Sharded)
    for number in range(2):
        assert same(weights(tmp_path, f"noise {number}", 0), weights(tmp_path, "noise", 0))


# The whole of a job


@pytest.fixture(scope="module")
def yard(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with shop_in(tmp_path_factory.mktemp("yard"), _sqlite_template) as shop:
        yard = Yard(shop, request=IN_PARTS)
        try:
            yield yard
        finally:
            yard.worker.end()


@pytest.fixture(scope="module")
def undisturbed(yard: Yard) -> Job:
    """A training that was left alone."""
    job = yard.becomes(yard.submit(SECONDS), "succeeded", "failed")
    assert (job.status, job.claims, job.attempt) == ("succeeded", 1, 1), job.error
    return job


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_is_survived_and_nothing_is_lost(
    which: int, yard: Yard, undisturbed: Job
) -> None:
    job, agent, ranks = yard.running(SECONDS)
    os.kill(ranks[which], signal.SIGKILL)
    ended = yard.becomes(job, "succeeded", "failed")
    assert (ended.status, ended.claims) == ("succeeded", 1), ended.error
    assert any("restart 1 of this run" in line for line in yard.log(job)), yard.log(job)
    assert yard.learned(job) == yard.learned(undisturbed)
    yard.until(lambda: gone(agent), "the trainer has left")


def test_a_pause_keeps_the_whole_and_resume_goes_on_with_the_same_bits(
    yard: Yard, undisturbed: Job
) -> None:
    job, agent, ranks = yard.running(SECONDS)
    yard.shop.act(jobs.pause, yard.shop.project, job.id)
    yard.becomes(job, "paused")
    yard.until(lambda: all(gone(pid) for pid in [agent, *ranks]), "every process has left")
    yard.shop.act(jobs.resume, yard.shop.project, job.id)
    assert yard.becomes(job, "succeeded", "failed").status == "succeeded"
    assert yard.learned(job) == yard.learned(undisturbed)


def test_one_device_finds_the_model_worth_what_all_of_them_found(
    yard: Yard, undisturbed: Job
) -> None:
    told = {"kind": "evaluate", "request": {"split": "test"}, "devices": 1}
    best = yard.shop.best(undisturbed)
    job = yard.becomes(yard.submit(SECONDS, base=best, **told), "succeeded", "failed")
    assert job.metrics["test"] == pytest.approx(undisturbed.metrics["test"])


def test_a_stop_keeps_the_best_and_judges_it(yard: Yard) -> None:
    job, agent, ranks = yard.running(HOURS)
    yard.shop.act(jobs.stop, yard.shop.project, job.id)
    ended = yard.becomes(job, "succeeded", "failed")
    assert ended.status == "succeeded", ended.error
    assert "test" in ended.metrics
    yard.until(lambda: all(gone(pid) for pid in [agent, *ranks]), "every process has left")
