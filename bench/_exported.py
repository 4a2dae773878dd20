"""A model of the service as plain files: for whoever runs it without the service, and to know what is right."""

import json
from pathlib import Path

from store import blobs, models, projects
from store.session import Database
from tasks import trained
from tasks.catalog import read_spec
from tasks.trained import Trained

SPEC, CODEC, WEIGHTS = "spec.json", "codec.json", "weights.safetensors"


def export(database: Database, ref: str, folder: Path) -> Path:
    """Write what `ref` means in the first project into a new folder. Raises NotFound."""
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        found = models.resolve(session, project.id, ref).checkpoint
    folder.mkdir(parents=True)
    (folder / SPEC).write_text(json.dumps(found.spec))
    blobs.fetch(database, found.codec_blob, folder / CODEC)
    blobs.fetch(database, found.weights_blob, folder / WEIGHTS)
    return folder


def load(folder: Path) -> Trained:
    """The model of an exported folder, in evaluation mode on the CPU."""
    task = read_spec(json.loads((folder / SPEC).read_text())).task
    return trained.load(task, json.loads((folder / CODEC).read_text()), folder / WEIGHTS)
