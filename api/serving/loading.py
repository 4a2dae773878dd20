"""Checkpoints to trained models, by way of this machine's cache of weights."""

import json
import time
from pathlib import Path

from store import blobs
from store.session import Database
from store.tables import Checkpoint
from tasks import trained
from tasks.catalog import read_spec
from tasks.trained import Trained

_SAFE_SECONDS = 60
"""Weights used this lately are not removed: another process may be about to read them."""


class Loader:
    """Reads checkpoints from the database; weights by content hash from `folder` when they lie there."""

    def __init__(self, database: Database, folder: Path, limit: int, device: str) -> None:
        """`limit` bounds the bytes of `folder`; models go to `device`."""
        self._database, self._folder = database, folder
        self._limit, self._device = limit, device
        folder.mkdir(parents=True, exist_ok=True)

    def measure(self, checkpoint: Checkpoint) -> int:
        """Bytes of weights and codec. Raises NotFound."""
        with self._database.transaction(read_only=True) as session:
            parts = checkpoint.weights_blob, checkpoint.codec_blob
            return sum(blobs.size(session, blob_id) for blob_id in parts)

    def load(self, checkpoint: Checkpoint) -> Trained:
        """The model, ready to predict. Raises NotFound when the checkpoint was deleted."""
        task = read_spec(checkpoint.spec).task
        codec = json.loads(b"".join(blobs.read(self._database, checkpoint.codec_blob)))
        weights = self._fetch(checkpoint.weights_blob)
        return trained.load(task, codec, weights, self._device)

    def _fetch(self, blob_id: str) -> Path:
        path = self._folder / f"{blob_id}.safetensors"
        if path.exists():
            path.touch()
        else:
            blobs.fetch(self._database, blob_id, path)
            self._prune()
        return path

    def _prune(self) -> None:
        """Remove what was not used for longest until the folder is within its limit."""
        found = [(path.stat(), path) for path in self._folder.glob("*.safetensors")]
        total = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda entry: entry[0].st_mtime):
            if total <= self._limit or stat.st_mtime > time.time() - _SAFE_SECONDS:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size
