"""Advice on bases: which of them a data set had best be learned from, whatever ends a run of it."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from sqlalchemy import delete

import worker.advising
from models.base import Supervised
from models.parts.training import Training
from store import jobs
from store.tables import Checkpoint, Dataset, Job, ModelVersion
from tasks import catalog
from tasks.base import Facts
from tasks.parts.advice import Candidate, Order, advised
from tests.toys import toy
from tests.worker.shop import Crash, Orders, Shop, rows
from worker.trainer import Exit

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16}
UNLEARNED = {"epochs": 1, "batch_size": 128, "optimizer": {"name": "sgd", "learning_rate": 1e-6}}


def trained(shop: Shop, data: Dataset, **training: Any) -> Job:
    job = shop.submit(data, SMALL, {"epochs": 20, "batch_size": 16} | training)
    assert shop.train(job) is Exit.DONE
    return shop.job(job)


def candidate(shop: Shop, data: Dataset, model: Job | None = None) -> Candidate:
    """What a training on the data would be that begins with a model, or with nothing."""
    best = shop.best(model) if model else None
    base = catalog.read_spec(best.spec).task if best else None
    facts = Facts(data.schema, data.splits)
    spec = catalog.resolve(data.task, facts, None, Training(), None, base)
    return Candidate(base=model and model.name, checkpoint=best and best.id, spec=spec)


def order(shop: Shop, data: Dataset, *bases: Candidate, examples: int = 100) -> Job:
    asked = Order(candidates=[*bases, candidate(shop, data)], examples=examples, seed=0)
    found: Job = shop.act(
        jobs.create,
        shop.project,
        kind="advise",
        name="bases",
        dataset_id=data.id,
        task=data.task,
        spec=asked.model_dump(mode="json"),
        request={},
        queue="cpu",
    )
    return found


def answer(shop: Shop, job: Job) -> dict[str, Any]:
    found = shop.job(job)
    assert found.status == "succeeded", found.error
    assert found.result is not None
    return found.result


def test_a_base_that_learned_the_same_comes_before_one_that_learned_nothing(shop: Shop) -> None:
    good = trained(shop, shop.upload(TABLE, rows(600, seed=1)))
    poor = trained(shop, shop.upload(TABLE, rows(), name="poor"), **UNLEARNED)
    data = shop.upload(TABLE, rows(seed=2), name="new")
    job = order(shop, data, *(candidate(shop, data, model) for model in (poor, good)))
    assert shop.train(job) is Exit.DONE
    found = answer(shop, job)
    ranking = found["ranking"]
    assert found["metric"] == "accuracy"
    assert ranking[0]["checkpoint"] == shop.best(good).id
    assert [row["rank"] for row in ranking] == [1, 2, 3]
    assert sum(row["checkpoint"] is None for row in ranking) == 1
    assert "promises most" in found["advice"]
    for row in ranking:
        assert 0 < row["score"] <= 1
        assert row["score_error"] < 0.2
        assert row["epoch_seconds"] > 0
        assert row["parameters"] > 100
    assert shop.job(job).model_name is None


@pytest.mark.parametrize("name", advised())
def test_every_advised_task_compares_a_base_with_its_inputs_alone(
    name: str, small_shop: Shop
) -> None:
    data = small_shop.store(name, toy(name, small_shop.folder, 60))
    model = small_shop.submit(data, training={"epochs": 1, "batch_size": 16})
    small_shop.train(model)
    job = order(small_shop, data, candidate(small_shop, data, model), examples=30)
    small_shop.train(job)
    found = answer(small_shop, job)
    trained = small_shop.trained(small_shop.best(model))
    assert found["left_out"] == []
    assert found["metric"] == trained.task.aim.metric
    of_base, plain = sorted(found["ranking"], key=lambda row: row["checkpoint"] is None)
    assert (of_base["checkpoint"], plain["checkpoint"]) == (small_shop.best(model).id, None)
    assert of_base["log_evidence"] is not None
    assert (of_base["forward_seconds"] is None, plain["forward_seconds"]) == (False, None)
    for row in (of_base, plain):
        assert row["parameters"] == sum(p.numel() for p in trained.learner.parameters())


@pytest.mark.parametrize("name", [n for n in advised() if n != "text-pair-classification"])
def test_a_head_makes_its_outputs_of_the_features_that_are_compared(
    name: str, small_shop: Shop
) -> None:
    data = small_shop.store(name, toy(name, small_shop.folder, 60))
    task = small_shop.spec(data, None, None).task
    train = small_shop.examples(data, "train")
    codec = task.learn_codec(train.lazy(), data.schema)
    learner = task.build(codec).eval()
    assert isinstance(learner, Supervised)
    batch = codec.encode(train).batch(torch.arange(4))
    with torch.no_grad():
        assert torch.equal(learner.head(learner.features_of(*batch.inputs)), learner(*batch.inputs))


def test_a_published_checkpoint_is_compared_as_well(small_shop: Shop) -> None:
    name = "image-classification"
    data = small_shop.store(name, toy(name, small_shop.folder, 60))
    spec = small_shop.spec(data, {"name": "pretrained"}, None)
    job = order(small_shop, data, Candidate(spec=spec), examples=30)
    small_shop.train(job)
    ranking = answer(small_shop, job)["ranking"]
    (row,) = (row for row in ranking if row["published"])
    assert row["architecture"] == "pretrained"
    assert row["published"] == spec.task.architecture.checkpoint
    assert row["features"] == 64


def test_what_turns_out_to_be_of_no_use_is_left_out_and_says_why(small_shop: Shop) -> None:
    shop = small_shop
    data = shop.upload(TABLE, rows(seed=2), name="new")
    other = shop.upload(TABLE, rows().replace("kind", "sort"), name="other")
    bases = [trained(shop, shop.upload(TABLE, rows(), name="gone")), trained(shop, other)]
    linear = shop.submit(other, {"name": "linear"}, {"epochs": 1})
    shop.train(linear)
    job = order(shop, data, *(candidate(shop, data, model) for model in (*bases, linear)))
    with shop.database.transaction() as session:
        session.execute(delete(ModelVersion))
        session.execute(delete(Checkpoint).where(Checkpoint.job_id == bases[0].id))
    shop.train(job)
    found = answer(shop, job)
    reasons = {each["base"]: each["reason"] for each in found["left_out"]}
    assert set(reasons) == {"gone", "other"}
    assert "There is no" in reasons["gone"] or "checkpoint" in reasons["gone"]
    assert len(found["left_out"]) == 3
    assert [row["checkpoint"] for row in found["ranking"]] == [None]
    assert "no model that could be a base" in found["advice"]


def test_a_base_whose_features_are_no_numbers_is_left_out(small_shop: Shop) -> None:
    data = small_shop.upload(TABLE, rows(seed=2), name="new")
    model = trained(small_shop, small_shop.upload(TABLE, rows()))
    job = order(small_shop, data, candidate(small_shop, data, model))
    nothing = torch.full((100, 4), torch.nan, dtype=torch.float64)
    with patch.object(worker.advising, "looked_at", lambda *_: iter([nothing])):
        small_shop.train(job)
    (left_out,) = answer(small_shop, job)["left_out"]
    assert left_out["reason"] == "its features are not finite numbers"


def test_a_run_that_is_killed_is_made_again_and_finds_the_same(small_shop: Shop) -> None:
    shop = small_shop
    data = shop.upload(TABLE, rows(seed=2), name="new")
    bases = [candidate(shop, data, trained(shop, shop.upload(TABLE, rows())))] * 2
    alone, job = order(shop, data, *bases), order(shop, data, *bases)
    shop.train(alone)
    with pytest.raises(KeyboardInterrupt):
        shop.train(job, Crash(after=3))
    assert shop.job(job).progress["percent"] > 0
    shop.lose(job)
    assert shop.train(job, Orders("drain", after=1)) is Exit.DONE
    assert shop.job(job).status == "queued"
    shop.train(job)
    timed = ("epoch_seconds", "forward_seconds")
    once, again = (
        [{k: v for k, v in row.items() if k not in timed} for row in answer(shop, each)["ranking"]]
        for each in (alone, job)
    )
    assert once == again


def test_a_cancelled_comparison_ends_without_an_answer(small_shop: Shop) -> None:
    data = small_shop.upload(TABLE, rows(), name="new")
    job = order(small_shop, data)
    small_shop.train(job, Orders("cancel"))
    found = small_shop.job(job)
    assert (found.status, found.result) == ("cancelled", None)
