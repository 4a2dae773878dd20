"""Several processes learn what one learns alone; real processes, and real gloo between them."""

from pathlib import Path

import pytest

from models.base import Learner
from tasks import catalog
from tests.worker.ensemble import (
    CASES,
    PAIRS,
    apart,
    gather,
    learn,
    learn_and_go_on,
    same,
    told,
    training,
    weights,
)
from tests.worker.trainings import finished
from worker.group import lost_peer
from worker.loop import mix


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have learned every case."""
    folder = tmp_path_factory.mktemp("pair")
    gather(2, folder, learn, CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(case: str, pair: Path, lone: Path) -> None:
    alone, both = weights(lone, case, 0), weights(pair, case, 0)
    start = training(case).trained.learner.state_dict()
    learned = max(apart(alone[name], start[name]) for name in alone)
    assert learned > 1e-4
    assert max(apart(both[name], alone[name]) for name in alone) < learned / 1_000
    assert same(both, weights(pair, case, 1)), "the processes are not in lockstep"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_tell_what_one_tells(case: str, pair: Path, lone: Path) -> None:
    (state, points), (alone, as_alone) = told(pair, case, 0), told(lone, case, 0)
    assert [(step, epoch, list(values)) for step, epoch, values in points] == [
        (step, epoch, list(values)) for step, epoch, values in as_alone
    ]
    for (_, _, values), (_, _, expected) in zip(points, as_alone, strict=True):
        losses = [name for name in values if name.startswith("train/") and "loss" in name]
        assert [values[name] for name in losses] == pytest.approx(
            [expected[name] for name in losses], rel=1e-3, abs=1e-4
        )
    assert (state["step"], state["epoch"], state["finished"]) == (
        alone["step"],
        alone["epoch"],
        True,
    )
    assert told(pair, case, 1)[0] == state, "the others know what rank 0 knows"


def test_early_stopping_is_tested_where_it_stops(pair: Path) -> None:
    assert told(pair, "early stopping", 0)[0]["epoch"] < 60


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_go_on_with_the_same_bits(size: int, tmp_path: Path) -> None:
    """With dropout and batch statistics; three of them add up in an order that a restart must not change."""
    gather(size, tmp_path, learn_and_go_on, ["noise"])
    undisturbed = weights(tmp_path, "noise", 0)
    for number in range(3):
        assert same(weights(tmp_path, f"noise {number}", 0), undisturbed)
    # What is drawn at random is drawn by each process for itself.
    alone = finished(training("noise")).trained.learner.state_dict()
    assert not same(undisturbed, alone)


def test_processes_that_search_together_stay_in_lockstep(tmp_path: Path) -> None:
    """What one learns alone is something else: of a batch, each has its own part to tell apart."""
    case = "search/bag-of-embeddings"
    gather(2, tmp_path, learn, [case])
    one, other = (weights(tmp_path, case, rank) for rank in range(2))
    start = training(case).trained.learner.state_dict()
    learned = [name for name in one if name.startswith("backbone.")]
    assert all(same({name: one[name]}, {name: other[name]}) for name in learned)
    assert all(apart(one[name], start[name]) > 1e-4 for name in learned)


def test_processes_that_draw_their_own_noise_stay_in_lockstep(tmp_path: Path) -> None:
    """With averages of the weights, which images are made with."""
    case = "image-generation/vae"
    gather(2, tmp_path, learn, [case])
    one, other = (weights(tmp_path, case, rank) for rank in range(2))
    start = training(case).trained.learner.state_dict()
    assert same(one, other)
    for part in ("backbone.", "average.0."):
        moved = [apart(one[name], start[name]) for name in one if name.startswith(part)]
        assert max(moved) > 1e-4, part


def test_no_two_processes_draw_the_same() -> None:
    drawn = {
        mix(mix(0, 0, step), rank, step) if rank else mix(0, 0, step)
        for rank in range(64)
        for step in range(64)
    }
    assert len(drawn) == 64 * 64


def test_architectures_that_spread_follow_gradients_by_the_learners_own_step() -> None:
    for case in PAIRS:
        learner = training(case).trained.learner
        assert learner.accumulates, case
        assert type(learner).train_step is Learner.train_step, case
    assert not catalog.architectures()["random-forest"].spreads


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer",
            True,
        ),
        ("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x2)", False),
    ],
)
def test_the_loss_of_another_process_is_told_from_other_errors(message: str, is_lost: bool) -> None:
    assert lost_peer(RuntimeError(message)) is is_lost
