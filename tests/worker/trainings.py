"""Trainings without a service around them, ready for `fit`."""

from collections.abc import Collection, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from PIL import Image

from models.base import Architecture, Learner
from models.parts.pretrained import Pretrained
from models.parts.training import Training, Transfer
from tasks import catalog
from tasks.base import Facts, Upload
from tasks.trained import Trained
from tests import published
from worker.loop import Split, fit, plan_of


class Course(NamedTuple):
    """The arguments of `fit`."""

    trained: Trained
    train: Split
    validation: Split
    training: Training


def course(
    task: str,
    content: bytes,
    architecture: dict[str, Any],
    training: dict[str, Any] | None = None,
    transfer: Transfer | None = None,
    **fields: Any,
) -> Course:
    """A fresh training on an uploaded file, started; `fields` are the task's own."""
    kind = catalog.task_named(task)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        checked = kind.check({"file": Upload(path, "upload")}, kind.options_type())
    facts = Facts(checked.schema, {name: frame.height for name, frame in checked.splits.items()})
    asked = kind.model_validate({"name": task, "architecture": architecture, **fields})
    asked = catalog.grounded(asked, published.find)
    given = Training.model_validate({"epochs": 3, "batch_size": 16} | (training or {}))
    spec = catalog.resolve(task, facts, asked, given, None)
    begins = isinstance(spec.task.architecture, Pretrained)
    found = published.find(spec.task.architecture) if begins else None
    reading = found and spec.task.reading(found)
    codec = spec.task.learn_codec(checked.splits["train"].lazy(), checked.schema, reading)
    splits = {name: Split(codec.encode(frame), frame) for name, frame in checked.splits.items()}
    torch.manual_seed(spec.training.seed)
    learner = spec.task.build(codec)
    if found is not None:
        spec.task.architecture.begin(learner, found)
    learner.start(
        spec.training,
        transfer or spec.transfer,
        plan_of(learner, splits["train"].columns, spec.training).steps,
    )
    return Course(
        Trained(spec.task, codec, learner), splits["train"], splits["validation"], spec.training
    )


def every_task_and_architecture(without: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Pairs in which every task and every architecture of these occurs, `without` some tasks.

    tests/worker/test_every_pair.py trains all pairs.
    """
    seen: set[type[Architecture]] = set()
    for name, task in sorted(catalog.tasks().items()):
        if name in without:
            continue
        offered = catalog.architectures(catalog.family_of(task))
        fresh = sorted(one for one, kind in offered.items() if kind not in seen)
        yield from ((name, one) for one in fresh or sorted(offered)[:1])
        seen.update(offered.values())


def finished(course: Course, **options: Any) -> Course:
    """The training after its last epoch."""
    for _ in fit(*course, **options):
        pass
    return course


def fingerprint(learner: Learner) -> str:
    """The same for two learners exactly if no bit of their weights differs."""
    digest = sha256()
    for name, tensor in learner.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def pictures(count: int = 24) -> bytes:
    """A zip of small pictures in two folders, one of darker ones."""
    draw, packed = Random(0), BytesIO()
    with ZipFile(packed, "w") as archive:
        for place in range(count):
            base = 40 if place % 2 else 170
            image = Image.new("RGB", (12, 12))
            image.putdata([tuple(base + draw.randrange(40) for _ in "rgb") for _ in range(144)])
            image.save(file := BytesIO(), "png")
            archive.writestr(f"{'dark' if place % 2 else 'light'}/{place}.png", file.getvalue())
    return packed.getvalue()
