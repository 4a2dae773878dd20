"""Advice on bases: which of them a data set had best be learned from, whatever ends a run of it."""

from typing import Any

from models.parts.training import Training
from store import jobs
from store.tables import Dataset, Job
from tasks import catalog
from tasks.base import Facts
from tasks.parts.advice import Candidate, Order
from tests.worker.shop import Shop, rows
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
