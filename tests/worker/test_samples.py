"""Sample predictions: what they show, when, and that a training does not mind them."""

import json
from typing import Any

import pytest

import worker.samples
from store import artifacts, blobs
from store.errors import NotFound
from store.tables import Job
from tests.toys import toy
from tests.worker.shop import Orders, Shop, rows
from worker.samples import EXAMPLES

TASK = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 8}
SHORT = {"epochs": 4, "batch_size": 32}


def kept(shop: Shop, job: Job) -> dict[str, dict[str, Any]]:
    found = [a for a in shop.act(artifacts.page, job.id).rows if a.name.startswith("samples-")]
    return {a.name: json.loads(b"".join(blobs.read(shop.database, a.blob_id))) for a in found}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples at the end of every epoch."""
    monkeypatch.setattr(worker.samples, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(worker.samples, "SHARE", 0.0)


@pytest.mark.usefixtures("often")
def test_each_epoch_shows_what_it_predicts_for_the_same_examples(shop: Shop) -> None:
    dataset = shop.upload(TASK, rows())
    job = shop.submit(dataset, SMALL, SHORT)
    shop.train(job)
    shown = kept(shop, job)
    assert sorted(shown) == [artifacts.samples_of(epoch) for epoch in (1, 2, 3, 4)]
    steps = {told["epoch"]: told["step"] for told in shown.values()}
    assert steps == {epoch: epoch * steps[1] for epoch in (1, 2, 3, 4)}
    places = {tuple(one["row"] for one in told["samples"]) for told in shown.values()}
    (found,) = places
    assert len(found) == EXAMPLES
    assert found[0] == 0
    assert found[-1] == shop.examples(dataset, "validation").height - 1
    first, last = (shown[artifacts.samples_of(epoch)]["samples"] for epoch in (1, 4))
    assert first != last


@pytest.mark.usefixtures("often")
def test_the_last_ones_are_what_the_last_weights_predict(small_shop: Shop) -> None:
    dataset = small_shop.upload(TASK, rows())
    job = small_shop.submit(dataset, SMALL, SHORT)
    small_shop.train(job)
    told = kept(small_shop, job)[artifacts.samples_of(4)]["samples"]
    trained, validation = (
        small_shop.trained(small_shop.last(job)),
        small_shop.examples(dataset, "validation"),
    )
    for sample in told:
        inputs = trained.codec.read_inputs(validation[[sample["row"]]].drop("label").to_dicts())
        (prediction,) = trained.predict(inputs)
        assert sample["prediction"]["label"] == prediction.label
        assert sample["prediction"]["scores"] == pytest.approx(prediction.scores, abs=1e-5)


def test_a_short_training_has_those_of_its_end(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TASK, rows()), SMALL, SHORT)
    small_shop.train(job)
    assert list(kept(small_shop, job)) == [artifacts.samples_of(4)]
    assert small_shop.act(artifacts.newest_samples, job.id).name == artifacts.samples_of(4)


@pytest.mark.usefixtures("often")
def test_what_is_learned_does_not_depend_on_them(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_shop.store(
        "image-classification", toy("image-classification", small_shop.folder, 60)
    )
    one, other = (
        small_shop.submit(dataset, {"name": "cnn", "channels": [8]}, SHORT) for _ in range(2)
    )
    small_shop.train(one)
    monkeypatch.setattr(worker.samples.Samples, "due", lambda *_: False)
    small_shop.train(other)
    assert not kept(small_shop, other)
    assert small_shop.last(one).weights_blob == small_shop.last(other).weights_blob


@pytest.mark.usefixtures("often")
def test_completed_predictions_are_shown(small_shop: Shop) -> None:
    job = small_shop.submit(
        small_shop.store(
            "token-classification", toy("token-classification", small_shop.folder, 40)
        ),
        {"name": "text-cnn", "filters": 8},
        {"epochs": 1, "batch_size": 32},
    )
    small_shop.train(job)
    (told,) = kept(small_shop, job).values()
    words = {word for one in told["samples"] for word in one["prediction"]["tokens"]}
    assert words & {"we", "they"}


def test_a_full_disk_costs_samples_and_nothing_else(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.samples.Samples, "_write", full)
    job = small_shop.submit(small_shop.upload(TASK, rows()), SMALL, SHORT)
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"
    assert not kept(small_shop, job)


@pytest.mark.usefixtures("often")
def test_a_cancelled_training_keeps_what_it_showed(small_shop: Shop) -> None:
    job = small_shop.submit(
        small_shop.upload(TASK, rows()), SMALL, {"epochs": 50, "batch_size": 32}
    )
    small_shop.train(job, Orders("cancel", after=8))
    assert small_shop.job(job).status == "cancelled"
    assert small_shop.act(artifacts.newest_samples, job.id) is not None


def test_a_job_that_has_not_ended_an_epoch_has_none(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TASK, rows()), SMALL, SHORT)
    with pytest.raises(NotFound, match="samples"):
        small_shop.act(artifacts.newest_samples, job.id)
