"""The story of an export, told in its trainer: fetch a model, write it in another format, keep the file."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from store import artifacts, blobs, checkpoints, jobs
from store.tables import Checkpoint
from tasks.catalog import read_spec
from tasks.parts.exports import FORMATS
from tasks.parts.packages import Packed, about_of
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
        told = way.write(model, folder, folder / "export")
        desk.go_on()
        result = {"format": asked["format"], "file": name, **told}
        persist(lambda: _end(desk, folder / "export", name, way.media_type, result))


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


def _end(desk: Desk, path: Path, name: str, media_type: str, result: dict[str, Any]) -> None:
    """Store the file, then have it appear as the job ends. Raises Fenced and Unreachable."""
    job, stored = desk.job, blobs.put(desk.database, path)
    with desk.database.transaction() as session:
        given = {"name": name, "media_type": media_type, "blob_id": stored}
        artifacts.add(session, job.id, job.lease_epoch, **given)
        jobs.finish(session, job.id, job.lease_epoch, "succeeded", result=result)
