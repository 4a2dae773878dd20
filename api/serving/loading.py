"""Checkpoints to trained models, by way of this machine's cache of weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from api.cache import Cache
from store import blobs
from store.session import Database
from store.tables import Checkpoint
from tasks import trained
from tasks.catalog import read_spec
from tasks.trained import Trained


class Source(NamedTuple):
    """What a model is made from: a task and its codec as JSON data, and the file of the weights."""

    task: Any
    codec: Any
    weights: Path


class Loader:
    """Reads checkpoints from the database into memory of `device`."""

    def __init__(self, database: Database, cache: Cache, device: str) -> None:
        self._database, self._cache, self._device = database, cache, device

    def measure(self, checkpoint: Checkpoint) -> int:
        """Bytes of weights and codec. Raises NotFound when the checkpoint was deleted."""
        with self._database.transaction(read_only=True) as session:
            parts = checkpoint.weights_blob, checkpoint.codec_blob
            return sum(blobs.size(session, blob_id) for blob_id in parts)

    def load(self, checkpoint: Checkpoint) -> Trained:
        """The model, ready to predict. Raises NotFound when the checkpoint was deleted."""
        _, codec, weights = self.source(checkpoint)
        return trained.load(read_spec(checkpoint.spec).task, codec, weights, self._device)

    def source(self, checkpoint: Checkpoint) -> Source:
        """What the model is made from. Raises NotFound when the checkpoint was deleted."""
        codec = json.loads(b"".join(blobs.read(self._database, checkpoint.codec_blob)))
        return Source(checkpoint.spec["task"], codec, self._cache.path(checkpoint.weights_blob))
