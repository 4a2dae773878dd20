"""What the loop learns is a function of the request and the data, and of nothing else."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from models.base import Batch
from tests.worker.shop import rows
from tests.worker.trainings import Course, course, fingerprint, finished
from worker.loop import Diverged, Progress, epoch_batches, fit, mix

SMALL = {"name": "mlp", "layers": 1, "width": 8, "dropout": 0.3}


def small(**training: Any) -> Course:
    return course("tabular-classification", rows(120).encode(), SMALL, training)


def orders(course: Course, epoch: int) -> list[list[int]]:
    learner, columns = course.trained.learner, course.train.columns
    return [index.tolist() for index in epoch_batches(learner, columns, course.training, epoch)]


def test_the_order_of_examples_depends_on_seed_and_epoch_alone() -> None:
    one, other = small(), small()
    torch.manual_seed(77)
    assert orders(one, 1) == orders(other, 1)
    assert orders(one, 1) != orders(one, 2)
    assert orders(one, 1) != orders(small(seed=1), 1)


def test_an_epoch_sees_every_example_once() -> None:
    training = small()
    seen = sorted(place for batch in orders(training, 0) for place in batch)
    assert seen == list(range(training.train.columns.examples))


def test_steps_of_neighbouring_seeds_and_epochs_share_no_randomness() -> None:
    places = [
        (seed, epoch, step) for seed in range(9) for epoch in range(9) for step in range(-1, 9)
    ]
    assert len({mix(*place) for place in places}) == len(places)


def test_the_same_seed_gives_the_same_weights() -> None:
    prints = {seed: fingerprint(finished(small(seed=seed)).trained.learner) for seed in (1, 2)}
    torch.manual_seed(5)
    assert fingerprint(finished(small(seed=1)).trained.learner) == prints[1]
    assert prints[1] != prints[2]


def test_reporting_more_often_changes_nothing_that_is_learned_or_drawn() -> None:
    def outcome(interval: float) -> tuple[str, list[Any], int]:
        training = small()
        reports = list(fit(*training, interval=interval))
        points = [point for report in reports for point in report.points]
        return fingerprint(training.trained.learner), points, len(reports)

    rare, often = outcome(1e9), outcome(0.0)
    assert rare[:2] == often[:2]
    assert rare[2] == 3 < often[2]


def test_curves_have_each_number_once_a_step_and_losses_at_most_fifty_an_epoch() -> None:
    training = course("tabular-classification", rows(500).encode(), SMALL, {"batch_size": 4})
    points = [point for report in fit(*training) for point in report.points]
    places = [(step, name) for step, _, values in points for name in values]
    assert len(places) == len(set(places))
    assert [step for step, _, _ in points] == sorted(step for step, _, _ in points)
    losses = [epoch for _, epoch, values in points if "train/loss" in values]
    assert 3 * 25 <= len(losses) <= 3 * 60
    assert {"validation/accuracy", "train/accuracy", "train/epoch_loss"} <= set(points[-1][2])


def test_only_an_epoch_that_beats_all_before_is_the_best() -> None:
    best: float | None = None
    for report in fit(*small(epochs=8)):
        if report.state.step_in_epoch == 0:
            value = dict(report.points[-1][2])["validation/accuracy"]
            assert report.is_best == (best is None or value > best)
            best = max(value, best or 0.0)
            assert report.state.best == best


def test_early_stopping_ends_a_training_that_no_longer_improves() -> None:
    patient = {"patience": 2, "min_delta": 0.0}
    last = list(fit(*small(epochs=60, early_stopping=patient)))[-1].state
    assert last.finished
    assert last.epoch < 60
    assert last.epoch - 1 - last.best_epoch == 2


def changed_step(training: Course, change: Callable[[Tensor, int], Tensor]) -> None:
    """Have the learner report `change(loss, step)` as its loss."""
    learner = training.trained.learner
    step_of = learner.train_step

    def train_step(batch: Batch, step: int) -> Tensor:
        return change(step_of(batch, step), step)

    learner.train_step = train_step  # type: ignore[method-assign]


def test_a_training_reports_while_it_is_judged_and_learns_nothing_then() -> None:
    training = small(epochs=1)
    learner = training.trained.learner
    judging = [
        fingerprint(learner)
        for report in fit(*training, interval=0.0)
        if report.state.step_in_epoch == report.plan.steps_per_epoch
    ]
    assert len(judging) >= 3, "after the last step, and after a batch of either split"
    assert set(judging) == {fingerprint(learner)}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training_with_advice(loss: float) -> None:
    training = small()
    changed_step(training, lambda value, step: value + loss if step == 2 else value)
    with pytest.raises(Diverged, match=r"by step \d+: lower the learning rate, clip the gradients"):
        finished(training)


def test_a_training_really_diverges_when_the_learning_rate_is_absurd() -> None:
    sgd = {"name": "sgd", "learning_rate": 100.0, "momentum": 0.99}
    linear = {"name": "mlp", "layers": 6, "norm": "none", "skip": False}
    training = course(
        "tabular-regression",
        rows(120).replace("high", "1e30").replace("low", "-1").encode(),
        linear,
        {"optimizer": sgd, "epochs": 20},
    )
    with pytest.raises(Diverged):
        finished(training)


def test_the_train_split_is_judged_on_a_sample_as_large_as_the_validation_split() -> None:
    training = small()
    asked: list[int] = []
    score = training.trained.task.score

    def noted(predictions: list[Any], examples: pl.DataFrame) -> dict[str, float]:
        asked.append(examples.height)
        return score(predictions, examples)

    object.__setattr__(training.trained.task, "score", noted)
    report: Progress = next(fit(*training, interval=1e9))
    assert report.state.epoch == 1
    assert asked == [training.validation.columns.examples] * 2


def test_how_long_a_training_will_be_is_known_at_its_first_step() -> None:
    first = next(fit(*small(epochs=7), interval=0.0))
    assert first.state.step == 1
    assert (first.plan.epochs, first.plan.steps) == (7, 7 * first.plan.steps_per_epoch)
