"""Which base suits a data set: what the features of each tell of its targets, before anything is fine-tuned."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.base import Learner
from models.parts.memory import ran_out
from models.parts.options import Plain
from models.parts.pretrained import Pretrained
from models.parts.transferability import (
    Kind,
    Targets,
    evened,
    folds_of,
    linear_head,
    log_evidence,
    neighbours,
    scaled,
    separation,
    standard_error,
)
from tasks.base import Codec, Task
from tasks.catalog import Spec, tasks
from tasks.parts.columns import Columns, Dense
from tasks.parts.plain_features import plain_features
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

_TIMED = 1
"""Steps whose time is taken, behind one that warms up: a second one would cost more than the features do."""


class Candidate(Plain):
    """What a training on the data set might begin with, and the training that it would be."""

    base: str | None = Field(None, description="The model, by its exact reference.")
    checkpoint: str | None = Field(None, description="The checkpoint that this means.")
    spec: Spec = Field(description="The training, with nothing left open.")

    @property
    def begins(self) -> bool:
        """Whether it brings weights that were learned."""
        return self.base is not None or isinstance(self.spec.task.architecture, Pretrained)

    @property
    def name(self) -> str:
        """What people know it by."""
        published = getattr(self.spec.task.architecture, "checkpoint", None)
        return self.base or published or "from scratch"


class LeftOut(Plain):
    """What was not compared."""

    base: str = Field(description="The model, or the published checkpoint.")
    reason: str = Field(description="Why it is of no use for this data set.")


class Order(Plain):
    """What is to be compared, with nothing left open: stored with the job."""

    candidates: list[Candidate] = Field(
        description="The last of them begins with nothing: it is what the others are compared with."
    )
    left_out: list[LeftOut] = Field([], description="Models that were of no use from the start.")
    examples: int = Field(description="Examples of the train split that are looked at, at most.")
    seed: int = Field(description="What draws the examples, and the folds.")


def advised() -> list[str]:
    """The names of the tasks whose bases can be compared."""
    return sorted(name for name, task in tasks().items() if task.advised)


def check_advised(task: str) -> None:
    """Raises Invalid for a task whose bases cannot be compared."""
    if task not in advised():
        message = "bases are compared where each example has a label, several, or a number"
        raise Invalid(Problem(("dataset",), message, task, advised()))


def looked_at(trained: Trained, columns: Columns) -> Iterator[Tensor | None]:
    """At last the features (N, D) of encoded examples; until then None after each batch.

    Raises Invalid for a model without features.
    """
    if not trained.embeds:
        raise Invalid(Problem(("base",), "it has no features that a head could be put on"))
    found: list[tuple[Tensor, Tensor]] = []
    for index, features in trained.features(columns):
        found.append((index, features))
        yield None
    order = torch.cat([index for index, _ in found]).argsort()
    yield torch.cat([features for _, features in found])[order].double()


def measured(
    task: Task, codec: Codec, columns: Columns, examples: pl.DataFrame, features: Tensor, seed: int
) -> dict[str, Any]:
    """What learned features (N, D) tell of the targets, in several ways. Raises Invalid where they are no numbers."""
    if not bool(features.isfinite().all()):
        raise Invalid(Problem(("base",), "its features are not finite numbers"))
    targets = targets_of(columns, codec)
    even = scaled(features)
    of_classes = targets.kind == "classes"
    return {
        **_scored(task, codec, examples, even, targets, seed),
        "log_evidence": log_evidence(features, targets.columns),
        "separation": separation(features, targets.values) if of_classes else None,
        "features": features.shape[1],
    }


def measured_plainly(
    task: Task, codec: Codec, columns: Columns, examples: pl.DataFrame, seed: int
) -> dict[str, Any]:
    """What the inputs themselves tell of the targets, likewise."""
    features = plain_features(columns)
    scored = _scored(task, codec, examples, evened(features), targets_of(columns, codec), seed)
    return {**scored, "log_evidence": None, "separation": None, "features": features.shape[1]}


def targets_of(columns: Columns, codec: Codec) -> Targets:
    """The targets of encoded examples, one for each."""
    (column,) = columns.targets
    assert isinstance(column, Dense)
    values = column.values
    if values.dtype == torch.int64:
        labels: Sequence[str] = getattr(codec, "labels", [])
        return Targets("classes", values, max(len(labels), int(values.max()) + 1))
    kind: Kind = "values" if values.dtype.is_floating_point else "label sets"
    return Targets(kind, values, values.shape[1])


def _scored(
    task: Task,
    codec: Codec,
    examples: pl.DataFrame,
    even: Tensor,
    targets: Targets,
    seed: int,
) -> dict[str, float]:
    """The task's objective of what a linear head and what neighbours predict."""
    metric = task.aim.metric
    predictions = codec.decode(linear_head(even, targets, folds_of(targets, seed)))

    def score(places: Tensor) -> float:
        some = places.tolist()
        return task.score([predictions[place] for place in some], examples[some])[metric]

    near = codec.decode(neighbours(even, targets))
    return {
        "score": task.score(predictions, examples)[metric],
        "score_error": standard_error(score, examples.height, seed),
        "neighbour_score": task.score(near, examples)[metric],
    }


def epoch_seconds(learner: Learner, columns: Columns, spec: Spec, examples: int) -> float | None:
    """About how long an epoch of so many examples takes, by a few steps, which change the learner.

    None where memory does not suffice for them: the training would cut its batches into pieces.
    """
    index = torch.arange(min(columns.examples, spec.training.batch_size))
    batch = columns.batch(index).to(next(learner.parameters()).device)
    try:
        learner.start(spec.training, spec.taking_over, 1 + _TIMED)
        learner.enter_epoch(0)
        learner.train_step(batch, 0).item()
        began = time.perf_counter()
        for step in range(1, 1 + _TIMED):
            learner.train_step(batch, step).item()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None
    return (time.perf_counter() - began) / _TIMED / len(index) * examples


def ranked(rows: Sequence[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    """The rows, the most promising first, and the place of each."""
    objective = task.aim
    order = sorted(rows, key=lambda row: _promise(row["score"], maximise=objective.maximise))
    return [{"rank": place, **row} for place, row in enumerate(order, start=1)]


def _promise(score: float, *, maximise: bool) -> float:
    """Less for a better score; the most for one that is no number."""
    if math.isnan(score):
        return math.inf
    return -score if maximise else score
