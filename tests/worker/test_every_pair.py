"""Every architecture learns the toy of every task that it can be asked for, and resumes to the same bits."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from models.base import CausalEncoder, SoundEncoder, TextEncoder
from models.parts.training import Transfer
from models.parts.writing import SequenceToSequence
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


SLIM: dict[str, dict[str, Any]] = {
    "instance-segmentation/resnet": {"width": 16, "depths": [1, 1, 1]},
    "instance-segmentation/convnext": {"width": 24, "depths": [1, 1, 2]},
    "semantic-segmentation/resnet": {"width": 16, "depths": [1, 1, 1]},
    "semantic-segmentation/convnext": {"width": 24, "depths": [1, 1, 2]},
    "semantic-segmentation/vit": {"width": 64, "layers": 2},
}
"""Networks smaller than the usual ones, where a toy takes these too long."""


def fresh(task: str, architecture: str) -> Course:
    training: dict[str, Any] = {"epochs": goal(task)[1], "batch_size": 32}
    transfer = None
    family = catalog.family_of(catalog.tasks()[task])
    if architecture == "pretrained":
        # Toys begin with weights drawn at random, which are worth no caution.
        transfer = Transfer(backbone_learning_rate=1)
        if issubclass(family, TextEncoder | SequenceToSequence | SoundEncoder):
            training["optimizer"] = {"name": "adamw", "learning_rate": 3e-3}
            training["batch_size"] = {CausalEncoder: 8, SoundEncoder: 8}.get(family, 16)
    asked = {"name": architecture, **SLIM.get(f"{task}/{architecture}", {})}
    return course(task, content(task), asked, training, transfer)


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
