"""Ways of fine-tuning, by the trainer's own code."""

from unittest.mock import patch

import pytest
import torch

from models.parts.adapters import IA3, DoRA, LoRA
from models.parts.training import Transfer
from store.tables import Dataset, Job
from tasks.base import Upload
from tasks.catalog import read_spec
from tests.worker.shop import Orders, Shop, crash, rows
from tests.worker.trainings import pictures
from worker import probing

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 2, "width": 8}
SHORT = {"epochs": 4, "batch_size": 16}


def base_of(shop: Shop) -> Job:
    """A small model of rows that has been trained."""
    job = shop.submit(shop.upload(TABLE, rows(120), "old"), SMALL, SHORT)
    shop.train(job)
    return shop.job(job)


def tuned(shop: Shop, base: Job, transfer: Transfer, count: int = 1) -> list[Job]:
    """Queued trainings of the same on a base, with a new head."""
    dataset = shop.upload(TABLE, rows(120, seed=1), "new")
    transfer = transfer.model_copy(update={"head": "new"})
    given = {"training": SHORT, "transfer": transfer, "base": shop.best(base)}
    return [shop.submit(dataset, **given) for _ in range(count)]


def done(shop: Shop, job: Job) -> Job:
    found = shop.job(job)
    assert found.status == "succeeded", found.error
    return found


METHODS = {
    "layer decay": Transfer(layer_decay=0.5),
    "pull": Transfer(l2_sp=0.1),
    "lora": Transfer(adapters=LoRA(rank=2, dropout=0.3)),
    "dora": Transfer(adapters=DoRA(rank=2), unfreeze_every=1),
    "ia3": Transfer(adapters=IA3(), layer_decay=0.5),
    "linear probe": Transfer(linear_probe=True),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_moves_ends_with_the_same_bits(small_shop: Shop, method: str) -> None:
    base = base_of(small_shop)
    alone, moved = tuned(small_shop, base, METHODS[method], count=2)
    small_shop.train(alone)
    small_shop.train(moved, Orders("drain", 9))
    assert small_shop.job(moved).status == "queued", small_shop.job(moved).error
    small_shop.train(moved)
    done(small_shop, moved)
    assert small_shop.last(moved).weights_blob == small_shop.last(alone).weights_blob
    assert small_shop.last(moved).state_blob == small_shop.last(alone).state_blob
    small_shop.trained(small_shop.best(moved))  # strictly: no weight more, and none less


# A linear probe


def test_a_probe_learns_the_head_that_a_frozen_backbone_gets(small_shop: Shop) -> None:
    base = base_of(small_shop)
    (frozen,) = tuned(small_shop, base, Transfer(trainable_blocks=0))
    (probed,) = tuned(small_shop, base, Transfer(linear_probe=True))
    small_shop.train(frozen)
    small_shop.train(probed)
    found = done(small_shop, probed)
    ours, theirs = (small_shop.weights(small_shop.last(job)) for job in (probed, frozen))
    began = small_shop.weights(small_shop.best(base))
    for name, weight in ours.items():
        if name.startswith("backbone."):
            assert weight.equal(began[name]), name
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)
    assert found.metrics["test"] == done(small_shop, frozen).metrics["test"]


def test_what_a_backbone_sees_is_computed_once_for_all_heads_on_it(small_shop: Shop) -> None:
    base = base_of(small_shop)
    dataset = small_shop.upload(TABLE, rows(120, seed=1), "new")
    given = {"transfer": Transfer(linear_probe=True), "base": small_shop.best(base)}
    first = small_shop.submit(dataset, training=SHORT, **given)
    small_shop.train(first)
    faster = SHORT | {"optimizer": {"name": "sgd", "learning_rate": 0.1}}
    second = small_shop.submit(dataset, training=faster, **given)
    with patch.object(probing, "features", crash):
        small_shop.train(second)
    done(small_shop, second)


def test_a_probe_is_judged_as_what_it_is_served_as(small_shop: Shop) -> None:
    base = base_of(small_shop)
    (job,) = tuned(small_shop, base, Transfer(linear_probe=True))
    small_shop.train(job)
    served = small_shop.trained(small_shop.best(job))
    test = small_shop.examples(dataset_of(small_shop, job), "test")
    predictions = served.predictions(served.codec.encode(test))
    expected = done(small_shop, job).metrics["test"]
    assert served.task.score(predictions, test) == pytest.approx(expected)


def dataset_of(shop: Shop, job: Job) -> Dataset:
    from store import datasets

    found: Dataset = shop.act(datasets.load, job.dataset_id)
    return found


def test_images_are_probed_as_they_are(small_shop: Shop) -> None:
    path = small_shop.folder / "pictures.zip"
    path.write_bytes(pictures())
    dataset = small_shop.store("image-classification", {"file": Upload(path, path.name)})
    tiny = {"name": "cnn", "channels": [8, 8]}
    first = small_shop.submit(dataset, tiny, {"epochs": 2, "batch_size": 8})
    small_shop.train(first)
    probe = {"transfer": Transfer(linear_probe=True), "base": small_shop.best(first)}
    job = small_shop.submit(dataset, training={"epochs": 2, "batch_size": 8}, **probe)
    assert read_spec(job.spec).task.augmentation.model_dump(exclude_defaults=True) == {}
    small_shop.train(job)
    assert done(small_shop, job).metrics["test"]["accuracy"] > 0.9


def test_pairs_are_probed_with_their_direction_beside_them(small_shop: Shop) -> None:
    lines = [f"a {n} b,{'a' if n % 2 else 'c'} {n},{'yn'[n % 2]}" for n in range(40)]
    csv = "\n".join(["premise,hypothesis,label", *lines])
    dataset = small_shop.upload("text-pair-classification", csv)
    transfer = Transfer(linear_probe=True)
    job = small_shop.submit(dataset, {"name": "pretrained"}, SHORT, transfer)
    small_shop.train(job)
    done(small_shop, job)
