"""Every architecture learns the toy of every task that it can be asked for, and resumes to the same bits."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from models.base import CausalEncoder, ImageBackbone, TextEncoder
from models.parts.training import Transfer
from tasks import catalog
from tests.toys import goal, toy
from tests.worker.trainings import Course, course, fingerprint
from worker import snapshots
from worker.loop import fit


def pairs() -> Iterator[tuple[str, str]]:
    for name, task in sorted(catalog.tasks().items()):
        for architecture in catalog.architectures(catalog.family_of(task)):
            yield name, architecture


@cache
def content(task: str) -> bytes:
    with TemporaryDirectory() as folder:
        return toy(task, Path(folder))["file"].path.read_bytes()


def fresh(task: str, architecture: str) -> Course:
    training: dict[str, Any] = {"epochs": goal(task)[1], "batch_size": 32}
    transfer = None
    family = catalog.family_of(catalog.tasks()[task])
    if architecture == "pretrained" and issubclass(family, ImageBackbone | TextEncoder):
        # Toys begin with weights drawn at random, which are worth no caution.
        transfer = Transfer(backbone_learning_rate=1)
        if issubclass(family, TextEncoder):
            training["optimizer"] = {"name": "adamw", "learning_rate": 3e-3}
            training["batch_size"] = 8 if family is CausalEncoder else 16
    return course(task, content(task), {"name": architecture}, training, transfer)


@pytest.mark.parametrize(("task", "architecture"), list(pairs()))
def test_a_pair_learns_its_toy_and_a_resumed_training_ends_with_the_same_bits(
    task: str, architecture: str
) -> None:
    whole = fresh(task, architecture)
    moments = []
    for report in fit(*whole, interval=0.0):
        moments.append((report.state, snapshots.take(whole.trained.learner)))
    best, objective = moments[-1][0].best, whole.trained.task.objective
    assert best is not None
    assert objective.better(best, goal(task)[0]), best

    state, snapshot = moments[len(moments) // 2 - 1]
    resumed = fresh(task, architecture)
    torch.manual_seed(1)
    snapshots.put_back(resumed.trained.learner, snapshot)
    *_, last = fit(*resumed, state=state, interval=0.0)
    assert last.state == moments[-1][0]
    assert fingerprint(resumed.trained.learner) == fingerprint(whole.trained.learner)
