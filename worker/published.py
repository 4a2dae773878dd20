"""Published checkpoints that trainings begin with: those of the Hub, and those that were uploaded."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable, from_hub, is_light, is_uploaded
from store import blobs, pretrained
from store.errors import NotFound
from store.session import Database
from tasks import catalog
from tasks.base import Task


def grounded(database: Database, task: Task) -> Task:
    """The task with what a published checkpoint says that it begins with. Raises Invalid."""
    with TemporaryDirectory() as folder:

        def fetched(blob_id: str) -> Path:
            path = Path(folder) / blob_id
            if not path.exists():
                blobs.fetch(database, blob_id, path)
            return path

        def find(architecture: Pretrained) -> Published:
            place = Path(folder) / "checkpoint"
            return published(database, architecture, place, fetched, weights=False)

        return catalog.grounded(task, find)


def published(
    database: Database,
    architecture: Pretrained,
    folder: Path,
    file: Callable[[str], Path],
    *,
    weights: bool,
) -> Published:
    """What an architecture begins with; an uploaded one is laid out in `folder`, by links to each blob's `file`.

    Raises Unusable.
    """
    checkpoint = architecture.checkpoint
    if not is_uploaded(checkpoint):
        return from_hub(checkpoint, architecture.revision, weights=weights)
    try:
        with database.transaction(read_only=True) as session:
            files = pretrained.files(session, checkpoint)
    except NotFound:
        raise Unusable(f"the uploaded checkpoint {checkpoint} was deleted") from None
    for name, blob_id in files.items():
        if weights or is_light(name):
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file(blob_id))
    return Published(folder)
