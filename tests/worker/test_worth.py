"""What a base is worth: trainings on a share of the data, and from scratch, as trainers do them."""

from typing import Any

import torch

from models.parts.training import Training, Transfer
from store import datasets, gains, logs, sweeps
from store.tables import Checkpoint, Dataset, Job
from tasks import catalog
from tasks.base import Facts
from tests.worker.shop import Orders, Shop, rows
from worker.cache import Cache
from worker.materials import Materials
from worker.sweeps import tend

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.2}
SHORT = {"epochs": 3, "batch_size": 8}


def based(shop: Shop) -> tuple[Dataset, Checkpoint]:
    """Data to learn from, and a model of other data that may help."""
    first = shop.submit(shop.upload(TABLE, rows()), SMALL, SHORT)
    shop.train(first)
    return shop.upload(TABLE, rows(seed=3), name="other"), shop.best(first)


def same(shop: Shop, one: Job, other: Job) -> bool:
    ours, theirs = (shop.weights(shop.last(job)) for job in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def moments(shop: Shop, job: Job) -> Any:
    """What its codec learned of the numbers."""
    codec: Any = shop.trained(shop.best(job)).codec
    return codec.model_dump()


def test_a_share_is_all_that_a_training_learns_from(small_shop: Shop) -> None:
    shop, data = small_shop, small_shop.upload(TABLE, rows())
    part, whole = (
        shop.submit(data, SMALL, {**SHORT, "share": share, "seed": 1}) for share in (0.25, 1.0)
    )
    for job in (part, whole):
        shop.train(job)
    (first, *_) = shop.act(logs.page, part.id).rows
    assert first.line.startswith("training mlp on 30 examples, 3 epochs of 4 steps"), first.line
    assert moments(shop, part) != moments(shop, whole), "its statistics are those of the share"
    kept = shop.examples(data, "train")[
        shop.trained(shop.best(part)).task.share(
            shop.examples(data, "train").lazy(), data.schema, 0.25, 1
        )
    ]
    alone = shop.trained(shop.best(part)).task.learn_codec(kept.lazy(), data.schema)
    assert alone.model_dump() == moments(shop, part)


def test_what_a_request_leaves_open_is_chosen_for_the_share(small_shop: Shop) -> None:
    data = small_shop.upload(TABLE, rows(40))
    many = Facts(data.schema, {"train": 60_000, "validation": 10})
    few = Facts(data.schema, {"train": 600, "validation": 10})
    part, whole, small = (
        catalog.resolve(TABLE, facts, None, Training(share=share), None).training
        for facts, share in ((many, 0.01), (many, 1.0), (few, 1.0))
    )
    assert part == small.model_copy(update={"share": 0.01})
    assert (part.batch_size, part.epochs) != (whole.batch_size, whole.epochs)


def test_a_training_on_a_share_is_resumed_exactly(small_shop: Shop) -> None:
    shop, data = small_shop, small_shop.upload(TABLE, rows())
    alone, moved = (shop.submit(data, SMALL, {**SHORT, "share": 0.3}) for _ in range(2))
    shop.train(alone)
    shop.train(moved, Orders("drain", after=5))
    assert shop.job(moved).status == "queued"
    shop.train(moved)
    assert same(shop, alone, moved)


def test_shares_are_kept_apart_from_each_other_and_from_the_whole(small_shop: Shop) -> None:
    shop, data = small_shop, small_shop.upload(TABLE, rows())
    blob = shop.act(datasets.files, data.id)["train"]
    materials = Materials(shop.database, Cache(shop.folder / "cache", 1 << 30))
    found = {}
    for share, seed in ((0.1, 0), (0.2, 0), (0.1, 1)):
        spec = shop.spec(data, SMALL, {"share": share, "seed": seed})
        name, examples = materials.part(blob, spec, data.schema)
        found[name] = examples.collect()
    small, large, other = found.values()
    assert (small.height, large.height, other.height) == (12, 24, 12)
    assert small.join(large, on=["a", "b"], how="anti").height == 0, "nested"
    assert small.join(other, on=["a", "b"], how="anti").height > 0
    whole = shop.examples(data, "train")
    rows_of_large = whole.join(large.select("a", "b"), on=["a", "b"], how="semi")
    assert rows_of_large.equals(large), "in their order"


def test_from_scratch_is_the_same_training_as_without_the_base(small_shop: Shop) -> None:
    shop = small_shop
    data, base = based(shop)
    scratch = shop.submit(
        data, training=SHORT, transfer=Transfer(from_scratch=True, trainable_blocks=0), base=base
    )
    plain = shop.submit(data, SMALL, SHORT)
    taking = shop.submit(data, training=SHORT, transfer=Transfer(), base=base)
    for job in (scratch, plain, taking):
        shop.train(job)
        assert shop.job(job).status == "succeeded", shop.job(job).error
    assert same(shop, scratch, plain)
    assert not same(shop, taking, plain)
    assert moments(shop, scratch) == moments(shop, plain)


def test_a_comparison_trains_every_pair_and_tells_the_gain(small_shop: Shop) -> None:
    shop = small_shop
    data, base = based(shop)
    choices: dict[str, list[Any]] = {
        gains.FROM_SCRATCH: [False, True],
        gains.SHARE: [0.1, 1.0],
        gains.SEED: [0, 1],
    }
    sweep = shop.act(
        sweeps.create,
        shop.project,
        name="worth",
        dataset_id=data.id,
        task=TABLE,
        request={"task": {"name": TABLE}, "training": SHORT},
        metric="accuracy",
        maximise=True,
        space={path: {"type": "choice", "choices": each} for path, each in choices.items()},
        sampler={"name": "grid"},
        pruner={"name": "none"},
        seed=0,
        trials=8,
        parallel=8,
        queue="cpu",
        base={"ref": "toys@1", "checkpoint": base.id},
        base_checkpoint_id=base.id,
    )
    tend(shop.database, sweep.id)
    for job in shop.act(sweeps.trials, sweep.id):
        shop.train(job)
    tend(shop.database, sweep.id)
    ended = shop.act(sweeps.get, shop.project, sweep.id)
    assert ended.status == "succeeded"
    trials = shop.act(sweeps.trials, sweep.id)
    table = gains.of(ended, trials)
    assert table is not None
    assert (table["split"], [row["share"] for row in table["rows"]]) == ("test", [0.1, 1.0])
    assert [row["seeds"] for row in table["rows"]] == [2, 2]
    few = table["rows"][0]
    assert few["gain"] > 0, "the base has learned the very same from other examples"
    assert table["as_good_from"] is not None
    scores = [
        job.metrics["test"]["accuracy"]
        for job in trials
        if job.parameters[gains.SHARE] == 0.1 and not job.parameters[gains.FROM_SCRATCH]
    ]
    assert few["with_transfer"] == sum(scores) / 2
