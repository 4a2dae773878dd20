"""What a job works on: splits, encoded once per machine, and models trained before."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from models.base import Architecture
from models.parts.pretrained import Pretrained
from models.parts.published import Published
from store import blobs, checkpoints, datasets
from store.session import Database
from store.tables import Checkpoint, Dataset
from tasks import trained
from tasks.base import Codec, Task
from tasks.catalog import Spec, read_spec
from tasks.parts.columns import Columns
from tasks.parts.examples import height
from tasks.parts.splits import Places
from tasks.trained import Trained
from worker.cache import Cache
from worker.encoded import columns_name, load_columns, part_name, save_columns
from worker.loop import Split
from worker.published import published

_ROW = "\0row"
_GROUP_BYTES = 16 << 20
"""Of a share that are read at once, about."""


class Materials:
    """Reads from the database by way of this machine's cache."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database, self._cache = database, cache
        self._laid_out = ExitStack()

    def close(self) -> None:
        """Give up the published checkpoint that was asked for last."""
        self._laid_out.close()

    def dataset(self, dataset_id: str) -> tuple[Dataset, dict[str, str]]:
        """A data set and the blob of each split. Raises NotFound."""
        with self._database.transaction(read_only=True) as session:
            return datasets.load(session, dataset_id), datasets.files(session, dataset_id)

    def examples(self, blob_id: str) -> pl.LazyFrame:
        """The examples of the split that is this blob, none of them read yet."""
        return pl.scan_parquet(self.blob(blob_id), glob=False)

    def part(self, blob_id: str, spec: Spec, schema: Mapping[str, Any]) -> tuple[str, pl.LazyFrame]:
        """The share of a train split that a job learns from, and what tells it from others as a blob's id does."""
        task, share, seed = spec.task, spec.training.share, spec.training.seed
        name = part_name(blob_id, task.name, schema, share, seed)

        def rows() -> Places:
            return task.share(self.examples(blob_id), schema, share, seed)

        return name, self._rows(name, blob_id, rows)

    def split(
        self,
        blob_id: str,
        examples: pl.LazyFrame,
        task: Task,
        codec: Codec,
        busy: Callable[[], object],
    ) -> Split:
        """A split, encoded now or at any time before by the same codec. Raises Invalid.

        `busy` is called between pieces of a large split, and while another trainer encodes it.
        """

        def pieces() -> Iterator[Columns]:
            for place, piece in enumerate(codec.encode_pieces(examples)):
                if place > 1:  # fewer take no time: the first one is small
                    busy()
                yield piece

        name = columns_name(blob_id, task.name, codec.model_dump_json())
        columns = self.columns(name, pieces, busy)
        return Split(columns, examples.drop(task.bulky).collect())

    def columns(
        self, name: str, pieces: Callable[[], Iterable[Columns]], busy: Callable[[], object]
    ) -> Columns:
        """Columns of that name, made of pieces now or at any time before."""

        def make(path: Path) -> None:
            save_columns(pieces(), path)

        return load_columns(self._cache.get(name, make, busy))

    def some(self, blob_id: str, rows: Sequence[int], name: str) -> pl.LazyFrame:
        """The examples at `rows`, in order, of the split that is this blob; kept as the file `name`."""
        return self._rows(name, blob_id, lambda: rows)

    def _rows(
        self, name: str, blob_id: str, rows: Callable[[], Places | Sequence[int]]
    ) -> pl.LazyFrame:
        """The examples at these rows of a blob, kept as the file `name`."""

        def write(path: Path) -> None:
            examples, wanted = self.examples(blob_id), pl.Series(rows(), dtype=pl.UInt32)
            per_row = self.blob(blob_id).stat().st_size / height(examples)
            kept = examples.with_row_index(_ROW).filter(pl.col(_ROW).is_in(wanted.implode()))
            # Written as it is read, some groups of rows at a time: the split may be larger than memory.
            kept.drop(_ROW).sink_parquet(path, row_group_size=max(1, int(_GROUP_BYTES / per_row)))

        return pl.scan_parquet(self._cache.get(name, write), glob=False)

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """Raises NotFound."""
        with self._database.transaction(read_only=True) as session:
            return checkpoints.load(session, checkpoint_id)

    def trained(self, checkpoint: Checkpoint, device: str = "cpu") -> Trained:
        """The model that a checkpoint is."""
        task = read_spec(checkpoint.spec).task
        weights = self.blob(checkpoint.weights_blob)
        return trained.load(task, self.codec(checkpoint), weights, device)

    def published(self, architecture: Architecture, *, weights: bool) -> Published | None:
        """What a pretrained architecture begins with, until another is asked for; or without `weights` what that says.

        Raises Unusable.
        """
        if not isinstance(architecture, Pretrained):
            return None
        self.close()
        folder = Path(self._laid_out.enter_context(TemporaryDirectory()))
        return published(self._database, architecture, folder, self.blob, weights=weights)

    def codec(self, checkpoint: Checkpoint) -> Any:
        """The codec of a checkpoint, as JSON data."""
        return json.loads(b"".join(blobs.read(self._database, checkpoint.codec_blob)))

    def blob(self, blob_id: str) -> Path:
        """A file with the bytes of a blob."""
        return self._cache.get(blob_id, lambda path: blobs.fetch(self._database, blob_id, path))
