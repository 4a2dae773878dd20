"""Exports as jobs: the file is an artifact, whole or not there, whatever ends a run of it."""

from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load

import worker.exporting
from store import artifacts, blobs, checkpoints, datasets, jobs, pretrained
from store.tables import Checkpoint, Job
from tasks.parts.packages import unpack
from tests.toys import toy
from tests.worker.shop import Crash, Orders, Shop, crash, rows
from worker.trainer import Exit

TABLE = "tabular-classification"


def trained(shop: Shop, architecture: str = "mlp") -> Job:
    data = shop.upload(TABLE, rows())
    job = shop.submit(data, {"name": architecture}, {"epochs": 2, "batch_size": 16})
    assert shop.train(job) is Exit.DONE
    return shop.job(job)


def export(shop: Shop, model: Job, format: str = "safetensors") -> Job:
    return export_of(shop, shop.best(model), format)


def export_of(shop: Shop, best: Checkpoint, format: str) -> Job:
    found: Job = shop.act(
        jobs.create,
        shop.project,
        kind="export",
        name="out",
        dataset_id=None,
        task=best.spec["task"]["name"],
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


def test_a_graph_is_tried_on_what_the_model_learned_from(small_shop: Shop) -> None:
    job = export(small_shop, trained(small_shop), "onnx")
    assert small_shop.train(job) is Exit.DONE
    found = small_shop.job(job)
    assert found.status == "succeeded", found.error
    assert found.result is not None
    assert (found.result["format"], found.result["file"]) == ("onnx", "toys-1-onnx.zip")
    assert 0 <= found.result["difference"] < 1e-5
    with ZipFile(BytesIO(file_of(small_shop, job))) as archive:
        examples = load(archive.read("examples.safetensors"))
    assert len(examples["output"]) == 4
    assert len(examples["inputs_0"].unique(dim=0)) == 4


def test_a_graph_is_made_without_the_data_that_the_model_learned_from(small_shop: Shop) -> None:
    model = trained(small_shop)
    small_shop.act(datasets.delete, small_shop.project, model.dataset_id)
    job = export(small_shop, model, "pt2")
    assert small_shop.train(job) is Exit.DONE
    found = small_shop.job(job)
    assert found.status == "succeeded", found.error
    assert found.result is not None
    assert found.result["difference"] == 0


def test_an_imported_model_leaves_again(small_shop: Shop, tmp_path: Path) -> None:
    first = export(small_shop, trained(small_shop))
    small_shop.train(first)
    path = tmp_path / "model.zip"
    path.write_bytes(file_of(small_shop, first))
    about, codec, weights = unpack(path, tmp_path)
    stored = [blobs.put(small_shop.database, each) for each in (weights, codec)]
    guest = small_shop.act(
        checkpoints.add,
        small_shop.project,
        step=about.step,
        epoch=about.epoch,
        metrics=about.metrics,
        weights_blob=stored[0],
        codec_blob=stored[1],
        spec=about.spec.model_dump(mode="json"),
    )
    again = export_of(small_shop, guest, "safetensors")
    assert small_shop.train(again) is Exit.DONE
    second = tmp_path / "again.zip"
    second.write_bytes(file_of(small_shop, again))
    (folder := tmp_path / "again").mkdir()
    assert unpack(second, folder).about == about


def test_a_network_that_was_published_leaves_as_it_came(small_shop: Shop, tmp_path: Path) -> None:
    data = small_shop.store(
        "image-classification", toy("image-classification", small_shop.folder, 60)
    )
    model = small_shop.submit(data, {"name": "pretrained"}, {"epochs": 1, "batch_size": 16})
    small_shop.train(model)
    job = export(small_shop, small_shop.job(model), "huggingface")
    assert small_shop.train(job) is Exit.DONE
    found = small_shop.job(job)
    assert found.status == "succeeded", found.error
    with ZipFile(BytesIO(file_of(small_shop, job))) as archive:
        left = load(archive.read("model.safetensors"))
    learned = small_shop.weights(small_shop.best(model))
    assert left
    for name, tensor in left.items():
        assert torch.equal(tensor, learned[f"backbone.network.{name}"])


def test_a_network_whose_checkpoint_is_gone_does_not_leave_as_it_came(small_shop: Shop) -> None:
    data = small_shop.store(
        "image-classification", toy("image-classification", small_shop.folder, 60)
    )
    model = small_shop.submit(data, {"name": "pretrained"}, {"epochs": 1, "batch_size": 16})
    small_shop.train(model)
    begun = small_shop.job(model).spec["task"]["architecture"]["checkpoint"]
    small_shop.act(pretrained.delete, small_shop.project, begun)
    job = export(small_shop, small_shop.job(model), "huggingface")
    assert small_shop.train(job) is Exit.DONE
    found = small_shop.job(job)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["message"] == f"The uploaded checkpoint {begun} was deleted."
    assert small_shop.act(artifacts.page, job.id).rows == []
