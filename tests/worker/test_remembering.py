"""Trainings on a base that keep what it knows, and trainings by a teacher, by the trainer's own code."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from models.parts.distillation import Distillation
from models.parts.training import Transfer
from store import datasets
from store.tables import Job
from tasks.catalog import read_spec
from tests.worker.shop import Orders, Shop
from worker.desk import sit_down
from worker.jobs import prepare
from worker.trainer import Assignment

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 8}
SHORT = {"epochs": 4, "batch_size": 16}
HARD = {"epochs": 25, "batch_size": 16, "optimizer": {"name": "adamw", "learning_rate": 0.03}}
"""Long enough to forget what is not seen any more."""
PLACES = {"north": (0, 2), "south": (0, -2), "west": (-2, 0)}


def places(names: Sequence[str], count: int = 90, seed: int = 0) -> str:
    """Points around the middles of places, which are their labels."""
    draw = random.Random(seed)
    lines = ["x,y,label"]
    for number in range(count):
        name = names[number % len(names)]
        x, y = PLACES[name]
        lines.append(f"{x + draw.gauss(0, 0.5)},{y + draw.gauss(0, 0.5)},{name}")
    return "\n".join(lines)


def base_of(shop: Shop, names: Sequence[str] = ("south", "north")) -> Job:
    """A model of some places that has been trained."""
    job = shop.submit(shop.upload(TABLE, places(names), "old"), SMALL, {**SHORT, "epochs": 8})
    shop.train(job)
    return shop.job(job)


def grow(
    shop: Shop,
    base: Job,
    names: Sequence[str],
    transfer: Transfer,
    training: Mapping[str, Any] = SHORT,
) -> Job:
    """A queued training of some places on a base."""
    dataset = shop.upload(TABLE, places(names, seed=1), "new")
    return shop.submit(dataset, training=dict(training), transfer=transfer, base=shop.best(base))


def test_a_grown_head_begins_with_the_rows_of_its_base(small_shop: Shop) -> None:
    base = base_of(small_shop)
    job = grow(small_shop, base, ["west", "south"], Transfer(head="grown"))
    claimed = small_shop.claimed(job)
    assignment = Assignment(claimed.id, claimed.lease_epoch, "cpu", 1)
    with sit_down(assignment, small_shop.settings, Orders()) as desk:
        ready = prepare(read_spec(claimed.spec), desk)
    assert ready.trained.codec.labels == ["north", "south", "west"]
    old = small_shop.weights(small_shop.best(base))["head.weight"]
    new = ready.trained.learner.head.weight
    assert new.shape == (3, 8)
    assert torch.equal(new[:2], old)


@pytest.mark.parametrize(
    ("head", "names", "labels"),
    [
        ("auto", ["west", "north", "south"], ["north", "south", "west"]),
        ("auto", ["west", "south"], ["south", "west"]),
        ("new", ["west", "north", "south"], ["north", "south", "west"]),
        ("grown", ["west", "south"], ["north", "south", "west"]),
    ],
)
def test_a_head_grows_by_itself_where_the_data_has_all_labels_of_the_base(
    small_shop: Shop, head: str, names: list[str], labels: list[str]
) -> None:
    job = grow(small_shop, base_of(small_shop), names, Transfer.model_validate({"head": head}))
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded", small_shop.job(job).error
    assert small_shop.trained(small_shop.best(job)).codec.labels == labels


def test_a_head_that_grew_keeps_its_order_when_it_learns_the_same_labels_again(
    small_shop: Shop,
) -> None:
    first = base_of(small_shop, ("west", "south"))
    second = grow(small_shop, first, ["west", "north", "south"], Transfer())
    small_shop.train(second)
    third = grow(
        small_shop, small_shop.job(second), ["north", "south", "west"], Transfer(head="kept")
    )
    small_shop.train(third)
    assert small_shop.job(third).status == "succeeded", small_shop.job(third).error
    assert small_shop.trained(small_shop.best(third)).codec.labels == ["south", "west", "north"]


def test_a_head_is_not_kept_for_other_labels(small_shop: Shop) -> None:
    job = grow(small_shop, base_of(small_shop), ["west", "south"], Transfer(head="kept"))
    small_shop.train(job)
    error = small_shop.job(job).error or {}
    assert error["code"] == "invalid_data"
    assert "by north, west" in error["message"]


def test_less_is_forgotten_of_labels_that_are_replayed(small_shop: Shop) -> None:
    base = base_of(small_shop)
    recall = {}
    for share in (0.0, 0.5):
        plan = Transfer(head="grown", replay=share, backbone_learning_rate=1.0)
        job = grow(small_shop, base, ["west", "south"], plan, HARD)
        small_shop.train(job)
        done = small_shop.job(job)
        assert done.status == "succeeded", done.error
        found = (done.result or {})["forgetting"]["per_class"]["north"]["recall"]
        recall[share] = found["after"]
    assert recall[0.0] < 0.7 < recall[0.5]


def test_the_report_says_what_was_forgotten_per_metric_and_class(small_shop: Shop) -> None:
    job = grow(small_shop, base_of(small_shop), ["west", "south"], Transfer(head="grown"))
    small_shop.train(job)
    report = (small_shop.job(job).result or {})["forgetting"]
    assert (report["split"], report["examples"]) == ("test", 18)
    accuracy = report["metrics"]["accuracy"]
    assert accuracy["change"] == accuracy["after"] - accuracy["before"]
    assert accuracy["before"] > 0.8
    assert {"north", "south"} <= set(report["per_class"])
    assert set(report["per_class"]["south"]["recall"]) == {"before", "after", "change"}


def test_a_report_without_the_data_of_the_base_says_so_and_the_job_succeeds(
    small_shop: Shop,
) -> None:
    base = base_of(small_shop)
    job = grow(small_shop, base, ["west", "north", "south"], Transfer())
    small_shop.act(datasets.delete, small_shop.project, base.dataset_id)
    small_shop.train(job)
    done = small_shop.job(job)
    assert done.status == "succeeded", done.error
    assert "was deleted" in (done.result or {})["forgetting"]["skipped"]


def test_a_new_head_has_nothing_to_report(small_shop: Shop) -> None:
    job = grow(small_shop, base_of(small_shop), ["west", "south"], Transfer(head="new"))
    small_shop.train(job)
    assert (small_shop.job(job).status, small_shop.job(job).result) == ("succeeded", None)


def test_what_is_remembered_is_resumed_exactly(small_shop: Shop) -> None:
    base = base_of(small_shop)
    transfer = Transfer(replay=0.4, distillation=Distillation())
    alone, moved = (grow(small_shop, base, ["west", "south"], transfer) for _ in range(2))
    small_shop.train(alone)
    small_shop.train(moved, Orders("drain", 9))
    small_shop.train(moved)
    assert small_shop.job(moved).status == "succeeded", small_shop.job(moved).error
    assert small_shop.last(moved).weights_blob == small_shop.last(alone).weights_blob


def test_a_small_network_learns_from_a_teacher_without_any_base(small_shop: Shop) -> None:
    teacher = base_of(small_shop)
    lessons = Distillation(teacher=small_shop.best(teacher).id, share=1.0)
    dataset = small_shop.act(datasets.load, teacher.dataset_id)
    tiny = {"name": "mlp", "layers": 1, "width": 2}
    job = small_shop.submit(dataset, tiny, {**SHORT, "epochs": 12}, Transfer(distillation=lessons))
    small_shop.train(job)
    done = small_shop.job(job)
    assert done.status == "succeeded", done.error
    assert done.metrics["test"]["accuracy"] > 0.8
