"""Batch predictions: an answer for each input of a data set or a file, however often a run is ended."""

import json
from io import BytesIO
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import polars as pl
import pytest

import worker.predictions
from store import artifacts, blobs, events, jobs
from store.tables import Job
from tasks import catalog
from tasks.base import Upload, files_of
from tasks.parts.inputs import read_inputs
from tests.toys import toy
from tests.worker.mortal import OF_BATCHES, Death, run
from tests.worker.shop import Crash, Orders, Shop, rows
from worker.trainer import Exit

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16}
SHORT = {"epochs": 1, "batch_size": 16}
Line = dict[str, Any]


def trained(shop: Shop) -> Job:
    job = shop.submit(shop.upload(TABLE, rows()), SMALL, SHORT)
    assert shop.train(job) is Exit.DONE
    return shop.job(job)


def order(shop: Shop, model: Job, **options: Any) -> Job:
    """A queued batch prediction, of the model's own data set unless told otherwise."""
    given = {
        "kind": "predict",
        "name": "many",
        "dataset_id": model.dataset_id,
        "task": model.task,
        "spec": model.spec,
        "request": {"split": "train"},
        "queue": "cpu",
        "base_checkpoint_id": shop.best(model).id,
    }
    found: Job = shop.act(jobs.create, shop.project, **(given | options))
    return found


def send(shop: Shop, model: Job, name: str, content: bytes) -> Job:
    """A queued batch prediction of a file."""
    path = shop.folder / "sent"
    path.write_bytes(content)
    inputs = read_inputs(Upload(path, name), catalog.task_named(model.task).input_type)
    inputs.write_parquet(shop.folder / "inputs")
    blob = blobs.put(shop.database, shop.folder / "inputs")
    return order(shop, model, dataset_id=None, request={"file": name}, inputs_blob=blob)


def content(shop: Shop, job: Job, name: str) -> bytes:
    found = shop.act(artifacts.get, job.id, name)
    return b"".join(blobs.read(shop.database, found.blob_id))


def lines(shop: Shop, job: Job) -> list[Line]:
    assert shop.job(job).status == "succeeded", shop.job(job).error
    return [json.loads(line) for line in content(shop, job, "predictions.jsonl").splitlines()]


def names(shop: Shop, job: Job) -> list[str]:
    return sorted(row.name for row in shop.act(artifacts.page, job.id, 1_000).rows)


@pytest.fixture
def small_pieces() -> Any:
    """So that a small data set has many pieces, and each is a part."""
    with (
        patch.object(worker.predictions, "PIECE_INPUTS", 10),
        patch.object(worker.predictions, "PART_ANSWERS", 10),
    ):
        yield


# What comes of it


@pytest.mark.parametrize("name", sorted(catalog.tasks()))
def test_every_task_predicts_for_a_data_set_what_it_predicts_for_a_request(
    name: str, small_shop: Shop
) -> None:
    dataset = small_shop.store(name, toy(name, small_shop.folder))
    model = small_shop.submit(dataset, training=SHORT)
    small_shop.train(model)
    job = order(small_shop, model, request={"split": "test"})
    assert small_shop.train(job) is Exit.DONE
    desk_model = small_shop.trained(small_shop.best(model))
    examples = small_shop.examples(dataset, "test")
    columns = desk_model.codec.encode(examples, targets=False)
    given = desk_model.codec.given(examples)
    whole = desk_model.codec.complete(desk_model.predictions(columns), given)
    expected = [p.model_dump(mode="json") for p in whole]
    found = lines(small_shop, job)
    assert [line["row"] for line in found] == list(range(examples.height))
    assert [line["prediction"] for line in found] == expected
    files = [line.get("file") for line in found]
    is_named = "name" in examples.columns and bool(files_of(desk_model.task.input_type))
    assert files == (examples["name"].to_list() if is_named else [None] * examples.height)
    table = pl.read_parquet(BytesIO(content(small_shop, job, "predictions.parquet")))
    fields = list(desk_model.task.answer_type.model_fields)
    assert table.columns == ["row", "file", *fields, "errors"]
    for field in fields:
        packed = isinstance(expected[0][field], dict | list)
        shown = [json.loads(v) if packed else v for v in table[field]]
        assert shown == [prediction[field] for prediction in expected]
    assert table["errors"].null_count() == table.height
    assert names(small_shop, job) == ["predictions.jsonl", "predictions.parquet"]
    result = small_shop.job(job).result
    assert result == {"rows": len(found), "predicted": len(found), "failed": 0, "failures": []}


def test_a_row_that_cannot_be_read_is_listed_and_the_others_are_predicted(shop: Shop) -> None:
    model = trained(shop)
    rows = ["a,b,kind,note", "1,2,x,for people", "oops,2,x,", "1,2,x", "NA,,y,"]
    job = send(shop, model, "rows.csv", "\n".join(rows).encode())
    assert shop.train(job) is Exit.DONE
    first, second, third, fourth = lines(shop, job)
    assert set(first["prediction"]) == {"label", "scores"}
    (error,) = second["errors"]
    assert (error["loc"], error["found"]) == (["line", 3, "a"], "'oops'")
    assert error["allowed"]
    (error,) = third["errors"]
    assert (error["loc"], error["found"], error["allowed"]) == (["line", 4], 3, 4)
    assert fourth["prediction"]
    result = shop.job(job).result
    assert result == {"rows": 4, "predicted": 2, "failed": 2, "failures": [second, third]}
    table = pl.read_parquet(BytesIO(content(shop, job, "predictions.parquet")))
    assert table["label"].is_null().to_list() == [False, True, True, False]
    assert json.loads(table["errors"][1]) == second["errors"]
    assert names(shop, job) == ["inputs.parquet", "predictions.jsonl", "predictions.parquet"]


def test_a_zip_of_images_is_answered_by_name(small_shop: Shop) -> None:
    name = "image-classification"
    dataset = small_shop.store(name, toy(name, small_shop.folder))
    model = small_shop.submit(dataset, training=SHORT)
    small_shop.train(model)
    image = small_shop.examples(dataset, "test")["image"][0]
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr("some/where.png", image)
        archive.writestr("note.png", b"no image")
        archive.writestr("__MACOSX/where.png", b"clutter")
    job = send(small_shop, model, "images.zip", packed.getvalue())
    small_shop.train(job)
    good, bad = lines(small_shop, job)
    assert (good["row"], good["file"]) == (0, "some/where.png")
    assert good["prediction"]["label"] in ("lying", "standing")
    assert (bad["row"], bad["file"]) == (1, "note.png")
    assert bad["errors"][0]["loc"] == ["note.png"]
    assert bad["errors"][0]["msg"] == "not a readable image"


def test_examples_that_another_model_cannot_read_are_listed(small_shop: Shop) -> None:
    model = trained(small_shop)
    odd = "a,b,kind,label\n" + "\n".join(f"{i if i % 4 else 'odd'},1,x,{i % 2}" for i in range(40))
    other = small_shop.upload(TABLE, odd)
    job = order(small_shop, model, dataset_id=other.id)
    small_shop.train(job)
    examples = small_shop.examples(other, "train")
    found = lines(small_shop, job)
    assert ["errors" in line for line in found] == [a == "odd" for a in examples["a"]]
    bad = next(line for line in found if "errors" in line)
    assert bad["errors"][0]["loc"] == ["row", bad["row"], "a"]


def test_a_job_without_any_prediction_fails_and_says_why(small_shop: Shop) -> None:
    model = trained(small_shop)
    job = send(small_shop, model, "rows.csv", b"a,kind\n1,x\n2,y\n")
    small_shop.train(job)
    found = small_shop.job(job)
    assert (found.status, (found.error or {})["code"]) == ("failed", "invalid_data")
    assert (found.error or {})["message"].startswith(
        "Line.2.b: no input can be predicted for, this one: the column is missing"
    )


# However often it is ended


def test_a_run_that_is_ended_is_gone_on_with_and_each_row_is_there_once(
    shop: Shop, small_pieces: None
) -> None:
    model = trained(shop)
    alone = order(shop, model)
    shop.train(alone)
    job = order(shop, model)
    with pytest.raises(KeyboardInterrupt):
        shop.train(job, Crash(after=6))
    assert shop.job(job).progress["rows_done"] == 20
    assert len(names(shop, job)) == 2
    assert content(shop, job, names(shop, job)[0])
    shop.lose(job)
    for command in ("preempt", "drain"):
        assert shop.train(job, Orders(command, after=3)) is Exit.DONE
        assert shop.job(job).status == "queued"
    assert shop.job(job).progress["rows_done"] == 40
    shop.train(job)
    assert content(shop, job, "predictions.jsonl") == content(shop, alone, "predictions.jsonl")
    assert names(shop, job) == ["predictions.jsonl", "predictions.parquet"]
    assert shop.job(job).result == shop.job(alone).result
    assert shop.act(blobs.sweep, 0) > 0, "the bytes of parts are kept by nobody"


def test_progress_pays_attempts_back(small_shop: Shop, small_pieces: None) -> None:
    model = trained(small_shop)
    job = order(small_shop, model, max_attempts=2)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            small_shop.train(job, Crash(after=3))
        small_shop.lose(job)
    small_shop.train(job)
    assert len(lines(small_shop, job)) == 120


def test_a_cancelled_job_keeps_nothing(small_shop: Shop, small_pieces: None) -> None:
    model = trained(small_shop)
    job = order(small_shop, model)
    small_shop.train(job, Orders("cancel", after=5))
    assert small_shop.job(job).status == "cancelled"
    assert names(small_shop, job) == []


def test_parts_are_told_as_they_come(small_shop: Shop, small_pieces: None) -> None:
    model = trained(small_shop)
    job = order(small_shop, model)
    small_shop.train(job)
    told = [
        e.data["name"] for e in small_shop.act(events.page, job.id).rows if e.type == "artifact"
    ]
    assert told[0] == "part-000000000000-000000000010.parquet"
    assert len(told) == 12 + 2


def test_a_run_killed_in_the_middle_loses_and_doubles_nothing(small_shop: Shop) -> None:
    always = {"checkpoint_seconds": 0.0}
    small_shop.settings = small_shop.settings.model_copy(update=always)
    model = trained(small_shop)
    inputs = (
        "a,b,kind\n" + "".join(f"{i % 17},{i % 5},{'xyz'[i % 3]}\n" for i in range(8_000))
    ).encode()
    alone, job = (send(small_shop, model, "rows.csv", inputs) for _ in range(2))
    small_shop.train(alone)
    for place in OF_BATCHES:
        nth = 1 if place in ("putting together", "batch end") else 2
        assert run(small_shop, job, Death(place, nth, 0.0)), "it was to be killed"
        assert small_shop.job(job).status == "queued"
    assert small_shop.job(job).progress["rows_done"] == 8_000
    assert not run(small_shop, job)
    expected = content(small_shop, alone, "predictions.jsonl")
    assert content(small_shop, job, "predictions.jsonl") == expected
    assert [json.loads(line)["row"] for line in expected.splitlines()] == list(range(8_000))
