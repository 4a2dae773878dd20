"""A few predictions now and then, so that a user can watch a training learn."""

import logging
import time
from typing import Any

import polars as pl
import torch
from pydantic_core import to_json

from store import artifacts, blobs
from store.session import Database
from store.tables import Job
from tasks.parts.columns import Columns
from tasks.trained import Trained
from worker.loop import State
from worker.outages import Unreachable, disk_is_full

log = logging.getLogger(__name__)

EXAMPLES = 8
EVERY_SECONDS, SHARE = 5.0, 0.1
"""The next ones are due so long after the last ones, and after so large a share of the training's time."""
_MOST_BYTES = 4 << 20


class Samples:
    """The same examples of the validation split, predicted at the ends of some epochs and of the last one."""

    def __init__(
        self,
        database: Database,
        job: Job,
        trained: Trained,
        validation: Columns,
        examples: pl.LazyFrame,
    ) -> None:
        self._database, self._job, self._trained = database, job, trained
        count = min(EXAMPLES, validation.examples)
        self._rows = torch.linspace(0, validation.examples - 1, count).long()
        self._columns = validation.select(self._rows)
        self._examples = examples
        self._began = self._shown = time.monotonic()
        self._given: Any = None

    def due(self, state: State) -> bool:
        """Whether an epoch has just been judged, and there should be new ones of it."""
        if state.epoch == 0 or state.step_in_epoch > 0:
            return False
        now = time.monotonic()
        pause = max(EVERY_SECONDS, SHARE * (now - self._began))
        return state.finished or now - self._shown >= pause

    def keep(self, state: State) -> None:
        """Predict and store, of a learner that has just been judged. Raises Fenced.

        A disk or a database that has no room or is away costs the user these samples, and nothing else.
        """
        self._shown = time.monotonic()
        predictions = self._trained.predictions(self._columns)
        whole = self._trained.codec.complete(predictions, self._inputs())
        shown = [
            {"row": row, "prediction": prediction}
            for row, prediction in zip(self._rows.tolist(), whole, strict=True)
        ]
        while len(content := _packed(state, shown)) > _MOST_BYTES and shown:
            shown = shown[: len(shown) // 2]
        try:
            self._write(artifacts.samples_of(state.epoch), content)
        except Exception as error:
            if not (isinstance(error, Unreachable) or disk_is_full(error)):
                raise
            log.warning("%s goes on without samples: %s", self._job.id, error)

    def _inputs(self) -> Any:
        """What completing predictions takes of the examples."""
        if self._given is None:
            frames = [self._examples.slice(row, 1).collect() for row in self._rows.tolist()]
            self._given = self._trained.codec.given(pl.concat(frames))
        return self._given

    def _write(self, name: str, content: bytes) -> None:
        blob = blobs.put_bytes(self._database, content)
        with self._database.transaction() as session:
            artifacts.add(
                session,
                self._job.id,
                self._job.lease_epoch,
                name=name,
                media_type="application/json",
                blob_id=blob,
            )


def _packed(state: State, shown: list[dict[str, Any]]) -> bytes:
    told = {"epoch": state.epoch, "step": state.step, "split": "validation", "samples": shown}
    return to_json(told, inf_nan_mode="null", fallback=str)
