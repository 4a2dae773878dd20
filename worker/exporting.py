"""The story of an export, told in its trainer: fetch a model, write it in another format, keep the file."""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.parts.published import Published
from store import artifacts, blobs, checkpoints, datasets, jobs
from store.tables import Checkpoint
from tasks.catalog import read_spec
from tasks.parts.columns import Columns
from tasks.parts.exports import FEW, FORMATS, Leaving
from tasks.parts.packages import Packed, about_of
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained
from worker.desk import Desk
from worker.outages import persist


def export(desk: Desk) -> None:
    """From a checkpoint to a file that leaves the service, an artifact of the job.

    A run that is ended begins anew: nothing of it would be worth keeping.
    """
    asked = desk.job.request
    way = FORMATS[asked["format"]]
    checkpoint = desk.materials.checkpoint(desk.job.base_checkpoint_id or "")
    name = f"{asked['model'].replace('@', '-')}{way.file}"
    with TemporaryDirectory(dir=desk.settings.cache_dir, prefix=".export-") as made:
        folder = Path(made)
        model = _packed(desk, checkpoint, folder)
        desk.go_on()
        path = folder / "export"
        leaving = Leaving(
            model, partial(_examples, desk, checkpoint), partial(_published, desk), folder, path
        )
        told = way.write(leaving)
        desk.go_on()
        result = {"format": asked["format"], "file": name, **told}
        persist(lambda: _end(desk, path, name, result))


def _packed(desk: Desk, checkpoint: Checkpoint, folder: Path) -> Packed:
    """The model as files. Raises NotFound."""
    with desk.database.transaction(read_only=True) as session:
        metrics = checkpoints.scores(session, checkpoint.id)
    codec = folder / "codec.json"
    codec.write_text(json.dumps(desk.materials.codec(checkpoint)), "utf-8")
    about = about_of(
        desk.job.request["model"],
        read_spec(checkpoint.spec),
        metrics,
        checkpoint.step,
        checkpoint.epoch,
    )
    return Packed(about, codec, desk.materials.blob(checkpoint.weights_blob))


def _examples(desk: Desk, checkpoint: Checkpoint, model: Trained) -> Columns:
    """A few examples of what it learned from, while that is there, or else of inputs that say nothing."""
    with desk.database.transaction(read_only=True) as session:
        dataset = checkpoints.dataset_of(session, checkpoint.id)
        files = datasets.files(session, dataset) if dataset else {}
    for split in ("test", "validation", "train"):
        if split in files:
            few = desk.materials.examples(files[split]).head(FEW).collect()
            return model.codec.encode(few, targets=False)
    blank = model.codec.blank()
    if blank is None:
        raise Invalid(Problem(("model",), "the data set that it learned from was deleted"))
    return model.codec.encode_inputs(model.codec.read_inputs([blank] * FEW))


def _published(desk: Desk, model: Trained) -> Published:
    """The files that came with the checkpoint that a model began with. Raises Unusable."""
    found = desk.materials.published(model.task.architecture, weights=False)
    assert found is not None, "only such models are asked"
    return found


def _end(desk: Desk, path: Path, name: str, result: dict[str, Any]) -> None:
    """Store the file, then have it appear as the job ends. Raises Fenced and Unreachable."""
    job, stored = desk.job, blobs.put(desk.database, path)
    with desk.database.transaction() as session:
        given = {"name": name, "media_type": "application/zip", "blob_id": stored}
        artifacts.add(session, job.id, job.lease_epoch, **given)
        jobs.finish(session, job.id, job.lease_epoch, "succeeded", result=result)
