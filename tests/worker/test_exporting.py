"""Exports as jobs: the file is an artifact, whole or not there, whatever ends a run of it."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import worker.exporting
from store import artifacts, blobs, jobs
from store.tables import Job
from tasks.parts.packages import unpack
from tests.worker.shop import Crash, Orders, Shop, crash, rows
from worker.trainer import Exit

TABLE = "tabular-classification"


def trained(shop: Shop, architecture: str = "mlp") -> Job:
    data = shop.upload(TABLE, rows())
    job = shop.submit(data, {"name": architecture}, {"epochs": 2, "batch_size": 16})
    assert shop.train(job) is Exit.DONE
    return shop.job(job)


def export(shop: Shop, model: Job, format: str = "safetensors") -> Job:
    best = shop.best(model)
    found: Job = shop.act(
        jobs.create,
        shop.project,
        kind="export",
        name="out",
        dataset_id=None,
        task=model.task,
        spec=best.spec,
        request={"model": "toys@1", "format": format},
        queue="cpu",
        base={"ref": "toys@1", "checkpoint": best.id},
        base_checkpoint_id=best.id,
    )
    return found


def file_of(shop: Shop, job: Job) -> bytes:
    result: Any = shop.job(job).result
    artifact = shop.act(artifacts.get, job.id, result["file"])
    return b"".join(blobs.read(shop.database, artifact.blob_id))


@pytest.mark.parametrize("architecture", ["mlp", "random-forest"])
def test_what_is_exported_predicts_as_the_checkpoint_does(
    architecture: str, small_shop: Shop, tmp_path: Path
) -> None:
    model = trained(small_shop, architecture)
    job = export(small_shop, model)
    assert small_shop.train(job) is Exit.DONE
    found = small_shop.job(job)
    assert (found.status, found.model_name) == ("succeeded", None), found.error
    assert found.result == {"format": "safetensors", "file": "toys-1.zip"}
    path = tmp_path / "model.zip"
    path.write_bytes(file_of(small_shop, job))
    packed = unpack(path, tmp_path)
    assert packed.about.ref == "toys@1"
    assert packed.about.metrics["test"]["accuracy"] == model.metrics["test"]["accuracy"]
    best = small_shop.best(model)
    assert (packed.about.step, packed.about.spec.task.name) == (best.step, TABLE)
    assert packed.weights.read_bytes() == b"".join(
        blobs.read(small_shop.database, best.weights_blob)
    )


@pytest.mark.parametrize(("command", "status"), [("cancel", "cancelled"), ("preempt", "queued")])
def test_an_export_that_is_told_to_end_leaves_no_file(
    command: Any, status: str, small_shop: Shop
) -> None:
    job = export(small_shop, trained(small_shop))
    assert small_shop.train(job, Orders(command)) is Exit.DONE
    assert small_shop.job(job).status == status
    assert small_shop.act(artifacts.page, job.id).rows == []


def test_an_export_that_was_killed_is_done_by_the_next_run(small_shop: Shop) -> None:
    job = export(small_shop, trained(small_shop))
    with pytest.raises(KeyboardInterrupt):
        small_shop.train(job, Crash(1))
    small_shop.lose(job)
    assert small_shop.train(job) is Exit.DONE
    assert small_shop.job(job).status == "succeeded"
    assert file_of(small_shop, job)


def test_an_export_that_was_killed_at_its_end_has_one_file(small_shop: Shop) -> None:
    job = export(small_shop, trained(small_shop))
    with (
        patch.object(worker.exporting.artifacts, "add", crash),
        pytest.raises(KeyboardInterrupt),
    ):
        small_shop.train(job)
    assert small_shop.act(artifacts.page, job.id).rows == []
    small_shop.lose(job)
    assert small_shop.train(job) is Exit.DONE
    assert len(small_shop.act(artifacts.page, job.id).rows) == 1
