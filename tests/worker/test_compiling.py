"""Trainings by kernels made for their networks; made for real where there is a C++ compiler."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models.parts.compiling import Compiled
from models.parts.training import Transfer
from tests.worker.mortal import run
from tests.worker.shop import Shop, rows, texts
from tests.worker.trainings import Course, course, fingerprint, finished
from worker import snapshots
from worker.loop import State, fit, samples

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 8, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _kernels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests may use what one of them has compiled."""
    folder = tmp_path_factory.getbasetemp() / "kernels"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def table(compile: str, transfer: Transfer | None = None, batch_size: int = 32) -> Course:
    """A training on 96 rows."""
    asked = {"epochs": 4, "batch_size": batch_size, "compile": compile}
    return course(TABLE, rows(120).encode(), SMALL, asked, transfer)


def ragged(compile: str) -> Course:
    """A training on texts, in which there is also dropout."""
    asked = {"epochs": 2, "batch_size": 16, "compile": compile}
    network = {"name": "bag-of-embeddings", "width": 8}
    return course("text-classification", texts(90).encode(), network, asked)


def regions(training: Course, index: torch.Tensor) -> int:
    """How often a step on the examples at `index` computes by kernels that were made."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        training.trained.learner.train_step(training.train.columns.batch(index), 0)
    return sum(event.name.startswith("Torch-Compiled Region") for event in seen.events())


def ready(training: Course) -> Course:
    """The training, its kernels made."""
    learner, train = training.trained.learner, training.train.columns
    pieces = samples(learner, train, training.training)
    learner.compile_for(pieces, ragged=train.lengths is not None)
    learner.enter_epoch(0)
    return training


def test_kernels_compute_the_same_loss_and_gradients() -> None:
    plain, compiled = table("never"), ready(table("always"))
    plain.trained.learner.enter_epoch(0)
    batch = plain.train.columns.batch(torch.arange(32))
    losses = [each.trained.learner.loss(batch) for each in (plain, compiled)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    theirs = dict(compiled.trained.learner.named_parameters())
    for name, weight in plain.trained.learner.named_parameters():
        torch.testing.assert_close(theirs[name].grad, weight.grad, atol=1e-5, rtol=1e-3)


def test_making_kernels_changes_nothing_else() -> None:
    plain, compiled = table("never"), table("always")
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    ready(compiled)
    assert torch.rand(1).equal(drawn)
    assert fingerprint(plain.trained.learner) == fingerprint(compiled.trained.learner)
    assert all(weight.grad is None for weight in compiled.trained.learner.parameters())


def test_batches_of_other_sizes_do_without_kernels() -> None:
    training = ready(table("always"))
    assert regions(training, torch.arange(20, 52)) > 0
    assert regions(training, torch.arange(31)) == 0


def test_kernels_are_made_for_every_size_that_there_will_be() -> None:
    training = table("always", batch_size=36)
    learner, train = training.trained.learner, training.train.columns
    assert [len(piece) for piece in samples(learner, train, training.training)] == [36, 24]
    halves = training.training.model_copy(update={"micro_batches": 2})
    assert [len(piece) for piece in samples(learner, train, halves)] == [18, 12]
    open_sizes = ragged("always")
    (piece,) = samples(open_sizes.trained.learner, open_sizes.train.columns, open_sizes.training)
    assert len(piece) == 16


@pytest.mark.parametrize("kind", [table, ragged])
def test_a_compiled_training_resumed_anywhere_ends_with_the_same_bits(
    kind: Callable[[str], Course],
) -> None:
    undisturbed = kind("always")
    learner = undisturbed.trained.learner
    moments = [(r.state, snapshots.take(learner)) for r in fit(*undisturbed, interval=0.0)]
    for state, snapshot in (moments[1], moments[len(moments) // 2 + 1]):
        resumed = kind("always")
        snapshots.put_back(resumed.trained.learner, snapshot)
        for _ in fit(*resumed, state=State.model_validate_json(state.model_dump_json())):
            pass
        assert fingerprint(resumed.trained.learner) == fingerprint(learner), f"from {state.step}"
    plain = finished(kind("never")).trained.learner
    assert fingerprint(plain) != fingerprint(learner), "this could not fail"


def test_kernels_are_made_anew_when_other_weights_learn() -> None:
    training, made = table("always", Transfer(trainable_blocks=0, unfreeze_every=2)), list[int]()
    with patch.object(Compiled, "make", lambda *_: made.append(epoch)):
        learner, train = training.trained.learner, training.train.columns
        learner.compile_for(samples(learner, train, training.training), ragged=False)
        for epoch in range(7):
            learner.enter_epoch(epoch)
    assert made == [0, 2, 4]


def test_a_trainer_compiles_and_leaves_nothing_behind(small_shop: Shop) -> None:
    asked = {"epochs": 2, "batch_size": 32, "compile": "always"}
    job = small_shop.submit(small_shop.upload(TABLE, rows(160)), SMALL, asked)
    shared = set(Path("/tmp").glob("torchinductor*/*"))
    assert not run(small_shop, job)
    assert small_shop.job(job).status == "succeeded", small_shop.job(job).error
    assert not list(small_shop.settings.cache_dir.glob(".kernels*"))
    assert set(Path("/tmp").glob("torchinductor*/*")) == shared
