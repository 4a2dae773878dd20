"""A training that was interrupted ends with the same weights, bit for bit, as one that was left alone."""

import json
from typing import Any

import pytest
import torch

from models.base import Learner
from tests.worker.shop import pairs, rows, texts
from tests.worker.trainings import Course, course, fingerprint, finished, pictures
from worker import snapshots
from worker.loop import State, fit
from worker.snapshots import Snapshot

MLP = {"name": "mlp", "layers": 2, "width": 8, "dropout": 0.3}
CASES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "momentum": (
        "tabular-classification",
        rows(120).encode(),
        MLP,
        {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}},
    ),
    "float16": (
        "tabular-classification",
        rows(120).encode(),
        MLP,
        {"precision": "float16", "clipping": {"norm": 1.0}},
    ),
    "adamw": ("tabular-classification", rows(120).encode(), MLP, {"optimizer": {"name": "adamw"}}),
    "adagrad": (
        "tabular-classification",
        rows(120).encode(),
        MLP,
        {"optimizer": {"name": "adagrad"}},
    ),
    "early-stopping": (
        "tabular-classification",
        rows(120).encode(),
        MLP,
        {"epochs": 40, "early_stopping": {"patience": 1}},
    ),
    "random-forest": (
        "tabular-classification",
        rows(120).encode(),
        {"name": "random-forest", "trees": 12},
        {},
    ),
    "lstm": (
        "text-classification",
        texts(90).encode(),
        {"name": "lstm", "embedding": 8, "width": 8},
        {"epochs": 2},
    ),
    "transformer": (
        "text-classification",
        texts(90).encode(),
        {"name": "transformer", "layers": 1, "width": 16, "feedforward": 16},
        {"epochs": 2},
    ),
    "search": (
        "search",
        pairs(40).encode(),
        {"name": "bag-of-embeddings", "width": 8},
        {"epochs": 2},
    ),
    "cnn": (
        "image-classification",
        pictures(),
        {"name": "cnn", "channels": [8, 8], "dropout": 0.2},
        {"epochs": 2},
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def fresh(case: str) -> Course:
    task, content, architecture, training = CASES[case]
    return course(task, content, architecture, training)


def through_json(snapshot: Snapshot) -> Snapshot:
    """As it comes back from the database."""
    settings, loss_scale = json.loads(json.dumps([snapshot.settings, snapshot.loss_scale]))
    return snapshot._replace(settings=settings, loss_scale=loss_scale)


def stops(case: str) -> list[tuple[State, Snapshot]]:
    """Every moment of a whole training, and what it became."""
    training = fresh(case)
    learner = training.trained.learner
    return [(r.state, snapshots.take(learner)) for r in fit(*training, interval=0.0)]


def test_a_training_resumed_anywhere_ends_with_the_same_bits(case: str) -> None:
    moments = stops(case)
    undisturbed = finished(fresh(case))
    ends = undisturbed.trained.learner
    most = max(state.step_in_epoch for state, _ in moments)
    judged = next(n for n, (state, _) in enumerate(moments) if state.step_in_epoch == most)
    chosen = sorted({0, 1, judged, len(moments) // 2, len(moments) - 2} - {-1})
    for place in chosen:
        state, snapshot = moments[place]
        resumed = fresh(case)
        torch.manual_seed(place)
        snapshots.put_back(resumed.trained.learner, through_json(snapshot))
        last = state
        for report in fit(*resumed, state=State.model_validate_json(state.model_dump_json())):
            last = report.state
        assert fingerprint(resumed.trained.learner) == fingerprint(ends), f"from {state.step}"
        assert last == moments[-1][0]
        assert optimizers(resumed.trained.learner) == optimizers(ends)


def optimizers(learner: Learner) -> str:
    """Everything the optimizers remember, and how losses are scaled."""
    taken = snapshots.take(learner)
    tensors = {name: tensor.tolist() for name, tensor in taken.memory.items()}
    return json.dumps([tensors, taken.settings, taken.loss_scale])


def test_a_snapshot_is_a_copy() -> None:
    training = fresh("adamw")
    learner = training.trained.learner
    reports = fit(*training, interval=0.0)
    next(reports)
    taken = snapshots.take(learner)
    before = {name: tensor.clone() for name, tensor in (taken.weights | taken.memory).items()}
    for _ in reports:
        pass
    after = taken.weights | taken.memory
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert fingerprint(learner) != fingerprint_of(taken)


def fingerprint_of(snapshot: Snapshot) -> str:
    training = fresh("adamw")
    snapshots.put_back(training.trained.learner, snapshot)
    return fingerprint(training.trained.learner)


def test_dropout_would_tell_if_randomness_were_a_state_and_not_a_function() -> None:
    """The other tests could not fail if these networks drew nothing."""
    training = fresh("adamw")
    learner, index = training.trained.learner, torch.arange(16)
    learner.train()
    batch = training.train.columns.batch(index)
    assert not torch.equal(learner(*batch.inputs), learner(*batch.inputs))
