"""The loop: trains and yields progress; knows no queue, no database, and no way of learning."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.base import Batch, Learner
from models.parts.options import Plain
from models.parts.training import Training
from tasks.base import Metrics
from tasks.parts.columns import Columns
from tasks.trained import Trained
from worker.feed import feed
from worker.group import ALONE, Group, Points

CURVE_POINTS_PER_EPOCH = 50


class Diverged(RuntimeError):
    """The loss is not a number any more; the message says what to change."""


class State(Plain):
    """Where a training stands. With the weights and the optimizers' state it is all that resuming needs."""

    epoch: int = 0
    step: int = 0
    """Steps done over the whole training."""
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    """Of the steps done in this epoch, in float64."""
    best: float | None = None
    best_epoch: int = 0
    metrics: dict[str, Metrics] = Field(default_factory=dict)
    """Of the best epoch, by split; `gap` is train minus validation, of the objective."""
    finished: bool = False


@dataclass(frozen=True)
class Split:
    """A split twice: encoded for the learner, and as examples, less bulky columns, for the score."""

    columns: Columns
    examples: pl.DataFrame


@dataclass(frozen=True)
class Plan:
    """The size of a training, known before its first step."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Progress:
    """What happened since the last report. The learner holds still until the next one is asked for."""

    state: State
    plan: Plan
    points: Points = field(default_factory=list)
    """(step, epoch, values): the learning curves' new points; an epoch's last step has two."""
    is_best: bool = False
    """Whether an epoch has just ended that is better than all before."""


def fit(
    trained: Trained,
    train: Split,
    validation: Split,
    training: Training,
    *,
    state: State | None = None,
    interval: float = 0.5,
    group: Group = ALONE,
) -> Iterator[Progress]:
    """Train, and report every `interval` seconds and after every epoch; the last report is `finished`.

    Reports come while the splits are judged, too: where all steps of an epoch are done, and its score is not.

    The learner must have been started, and restored when `state` is not the beginning. What is learned
    is a function of the request and the data alone: neither reporting nor resuming changes a bit of it.
    The processes of a `group` take the same steps; what they report is the same, but while judging only
    rank 0 does. Raises Diverged when the loss is no longer finite.
    """
    task, learner = trained.task, trained.learner
    device = trained.device
    state = state or State()
    plan = plan_of(learner, train.columns, training)
    sample = _sample(train, len(validation.examples))
    every = max(1, plan.steps_per_epoch // CURVE_POINTS_PER_EPOCH)
    points: Points = []
    if training.compile == "always" and not state.finished:
        pieces = [piece.to(device) for piece in samples(learner, train.columns, training)]
        learner.compile_for(pieces, ragged=train.columns.lengths is not None)
    reported = time.monotonic()

    while not state.finished:
        epoch, step, done = state.epoch, state.step, state.step_in_epoch
        learner.enter_epoch(epoch)
        group.enter_epoch(learner)
        batches = epoch_batches(learner, train.columns, training, epoch)
        total = torch.tensor(
            0.0 if group.rank else state.loss_sum, dtype=torch.float64, device=device
        )
        with feed(train.columns, map(group.part, batches[done:]), device) as source:
            while done < len(batches):
                batch = group.share(source, batches[done]).to(device)
                seed_step(training.seed, epoch, step, group.rank)
                loss = learner.train_step(batch, step)
                total += loss
                step, done = step + 1, done + 1
                if done % every == 0:
                    points.append((step, epoch + 1, {"train/loss": loss}))  # type: ignore[dict-item]
                if group.due(step, time.monotonic() - reported, interval):
                    loss_sum, points = _read(group, total, points, step, interval)
                    state = _at(state, step, done, loss_sum)
                    yield Progress(state, plan, points)
                    points, reported = [], time.monotonic()

        loss_sum, points = _read(group, total, points, step, interval)
        state = _at(state, step, done, loss_sum)
        metrics = None
        for metrics in group.judged(judge(trained, {"train": sample, "validation": validation})):
            if metrics is None and time.monotonic() - reported > interval:
                yield Progress(state, plan, points)
                points, reported = [], time.monotonic()

        assert metrics is not None
        metrics["train"]["loss"] = loss_sum / max(1, len(batches))
        decisive = task.aim.metric
        value = metrics["validation"][decisive]
        metrics["gap"] = {decisive: metrics["train"][decisive] - value}
        patience = training.early_stopping
        is_best = task.aim.better(value, state.best)
        counts = task.aim.better(value, state.best, patience.min_delta if patience else 0.0)
        best_epoch = epoch if counts else state.best_epoch
        waited = epoch - best_epoch
        state = State(
            epoch=epoch + 1,
            step=step,
            best=value if is_best else state.best,
            best_epoch=best_epoch,
            metrics=metrics if is_best else state.metrics,
            finished=epoch + 1 >= plan.epochs
            or (patience is not None and waited >= patience.patience),
        )
        flat = {f"{split}/{name}": v for split, of in metrics.items() for name, v in of.items()}
        flat["train/epoch_loss"] = flat.pop("train/loss")
        points.append((step, epoch + 1, flat))
        yield Progress(state, plan, points, is_best)
        points, reported = [], time.monotonic()


def plan_of(learner: Learner, train: Columns, training: Training) -> Plan:
    """How long a training will be."""
    return Plan(
        learner.epochs(training.epochs), len(epoch_batches(learner, train, training, epoch=0))
    )


def epoch_batches(learner: Learner, train: Columns, training: Training, epoch: int) -> list[Tensor]:
    """The examples of each step of an epoch: a function of the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(mix(training.seed, epoch, -1))
    return list(learner.batches(train.examples, train.lengths, training.batch_size, generator))


def samples(learner: Learner, train: Columns, training: Training) -> list[Batch]:
    """Examples of what a training learns from at a time, one of each size or, if ragged, of the largest.

    A function of the seed alone.
    """
    pieces = {
        len(piece): piece
        for batch in reversed(epoch_batches(learner, train, training, epoch=0))
        for piece in batch.chunk(training.micro_batches)
    }
    sizes = sorted(pieces, reverse=True)
    return [train.batch(pieces[size]) for size in (sizes if train.lengths is None else sizes[:1])]


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Make dropout, augmentation and noise of a step a function of (seed, epoch, step, rank)."""
    mixed = mix(seed, epoch, step)
    if rank:
        mixed = mix(mixed, rank, step)
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(mixed)


def mix(seed: int, epoch: int, step: int) -> int:
    """A number for a generator that differs for every (seed, epoch, step): SplitMix64's finaliser."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9 + step + 2) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & mask
    return (value ^ (value >> 31)) >> 1


def _sample(train: Split, at_most: int) -> Split:
    """A fixed part of the train split, to see the gap to the validation split without much cost."""
    index = torch.linspace(
        0, train.columns.examples - 1, min(train.columns.examples, at_most, 1_000)
    )
    return part(train, index.long())


def part(split: Split, index: Tensor) -> Split:
    """The examples of a split at `index` (n,)."""
    return Split(split.columns.select(index), split.examples[index.tolist()])


def judge(trained: Trained, splits: Mapping[str, Split]) -> Iterator[dict[str, Metrics] | None]:
    """At last every metric of the task, by split; until then None after each batch that is predicted."""
    metrics = {}
    for name, split in splits.items():
        for predictions in trained.answering(split.columns):
            if predictions is None:
                yield None
            else:
                metrics[name] = trained.task.score(predictions, split.examples)
    yield metrics


def _read(
    group: Group, total: Tensor, points: Points, step: int, interval: float
) -> tuple[float, Points]:
    """Bring losses that are still on the devices to the CPU, all at once and only when reporting."""
    loss_sum, points = group.read(total, points, step, interval)
    for at, _, values in points:
        for loss in values.values():
            _finite(loss, at)
    return _finite(loss_sum, step), points


def _at(state: State, step: int, done: int, loss_sum: float) -> State:
    """The state after `step` steps, `done` of them in this epoch."""
    return state.model_copy(update={"step": step, "step_in_epoch": done, "loss_sum": loss_sum})


def _finite(loss: float, step: int) -> float:
    if math.isfinite(loss):
        return loss
    raise Diverged(
        f"the loss became {loss} by step {step}: lower the learning rate, clip the gradients "
        "(training.clipping.norm = 1.0), or look for extreme values in the data"
    )
