"""What a teacher answers to the examples of a split, as what a learner learns from."""

from collections.abc import Iterator
from typing import Any

import polars as pl
import torch

from models.base import Supervised
from models.parts.distillation import Distillation, Lessons
from tasks.base import Codec, Task
from tasks.parts.columns import Columns, Dense
from tasks.parts.examples import pieces
from tasks.parts.labels import SHOWN, LabelCodec
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

TEACHER = ("transfer", "distillation", "teacher")


def check_teacher(task: Task, teacher: Task) -> None:
    """Raises Invalid for a teacher of another task, and for tasks and architectures that cannot be taught."""
    if not (issubclass(task.codec_type, LabelCodec) and task.codec_type.grows):
        message = f"{task.name} cannot be taught: its outputs are not a score for each label"
        raise Invalid(Problem(TEACHER[:2], message, task.name))
    if type(task) is not type(teacher):
        raise Invalid(Problem(TEACHER, "teaches another task", teacher.name, task.name))
    if not task.architecture.spreads:
        message = f"{task.architecture.name} follows no gradient, so it cannot be taught"
        raise Invalid(Problem(TEACHER[:2], message, task.architecture.name))
    if getattr(task, "multi_label", None) != getattr(teacher, "multi_label", None):
        message = "one gives each example one label, the other several"
        raise Invalid(Problem(TEACHER, message))


def check_taught(labels: list[str], teacher: list[str]) -> None:
    """Raises Invalid for a teacher of labels that are not learned."""
    foreign = sorted(set(teacher) - set(labels))
    if foreign:
        message = "it has labels that are not learned here"
        raise Invalid(Problem(TEACHER, message, foreign[:SHOWN], labels[:SHOWN]))


def give_lessons(learner: Any, plan: Distillation, codec: Any, teacher: Codec) -> None:
    """Have a learner learn from the answers of a model with that codec, too. Raises Invalid."""
    assert isinstance(learner, Supervised)
    assert isinstance(teacher, LabelCodec)
    check_taught(codec.labels, teacher.labels)
    place = {label: number for number, label in enumerate(codec.labels)}
    places = tuple(place[label] for label in teacher.labels)
    learner.lessons = Lessons(plan, places, several=getattr(codec, "multi_label", False))


def answers(teacher: Trained, examples: pl.LazyFrame) -> Iterator[Columns | None]:
    """Its outputs (N, labels) for all examples, as it reads them, in pieces; None after each of its batches."""
    for piece in pieces(examples, teacher.codec.first_piece):
        columns = teacher.codec.encode(piece, targets=False)
        found = torch.zeros(piece.height, len(getattr(teacher.codec, "labels", ())))
        for index, outputs in teacher.outputs(columns):
            found[index] = outputs
            yield None
        yield Columns((Dense(found),))
