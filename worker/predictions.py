"""The story of a batch prediction, told in its trainer: read a piece, predict, keep a part, put them together."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import polars as pl
from pydantic import BaseModel

from store import artifacts, blobs, jobs
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained
from worker.answers import (
    Answer,
    Piece,
    answering,
    lines,
    of_examples,
    of_inputs,
    table,
)
from worker.desk import Desk, Told
from worker.outages import Unreachable, persist

PIECE_BYTES, PIECE_INPUTS = 8 << 20, 1024
"""About as much as is read at a time: what a run has in memory, and what it loses when it is ended."""
PART_BYTES, PART_ANSWERS = 16 << 20, 100_000
"""A part is kept when it has so much, or when a training would save a checkpoint."""
REPORT_SECONDS = 2.0
FAILURES = 100
"""Inputs without a prediction that the job itself shows."""
LINES, TABLE = "predictions.jsonl", "predictions.parquet"
MEDIA_TYPES = {LINES: "application/jsonl", TABLE: artifacts.PARQUET}


def predict(desk: Desk) -> None:
    """From inputs to a prediction for each, or why there is none."""
    checkpoint = desk.materials.checkpoint(desk.job.base_checkpoint_id or "")
    trained = desk.materials.trained(checkpoint, desk.device)
    source = source_of(desk)
    with Parts(desk, trained.task.answer_type, source.total) as parts:
        for start in range(parts.stop, source.total, source.at_once):
            for answers in desk.heard(answering(source.piece(start, trained), trained, start)):
                if answers is not None:
                    parts.add(answers)
    publish(desk, trained)


class Source(NamedTuple):
    """What to predict for: a Parquet file of so many inputs, and how a piece of it is read."""

    path: Path
    read: Callable[[pl.DataFrame, Trained, int], Piece]
    total: int
    at_once: int
    """Inputs of a piece. The same in every run: an answer's last digits may depend on its neighbours."""

    def piece(self, start: int, trained: Trained) -> Piece:
        rows = pl.scan_parquet(self.path, glob=False).slice(start, self.at_once)
        return self.read(rows.collect(), trained, start)


def source_of(desk: Desk) -> Source:
    """The inputs of the job: those sent with it, or a split of a data set. Raises Invalid and NotFound."""
    with desk.database.transaction(read_only=True) as session:
        blob_id = artifacts.inputs(session, desk.job.id)
    read = of_examples if blob_id is None else of_inputs
    path = desk.materials.blob(blob_id or _split(desk))
    total, size = _measure(pl.scan_parquet(path, glob=False))
    return Source(path, read, total, max(1, min(PIECE_INPUTS, PIECE_BYTES * total // max(1, size))))


def _measure(rows: pl.LazyFrame) -> tuple[int, int]:
    """How many there are, and the bytes of their texts and files: packed they may have next to none."""
    schema = rows.collect_schema()
    texts = (pl.col(name).str.len_bytes() for name, kind in schema.items() if kind == pl.String)
    files = (pl.col(name).bin.size() for name, kind in schema.items() if kind == pl.Binary)
    sizes = (column.cast(pl.Int64).sum() for column in (*texts, *files))
    query = rows.select(pl.len(), pl.sum_horizontal(pl.lit(0, pl.Int64), *sizes).alias("size"))
    total, size = query.collect(engine="streaming").row(0)
    return int(total), int(size)


def _split(desk: Desk) -> str:
    """The blob of the split that was asked for."""
    _, files = desk.materials.dataset(desk.job.dataset_id or "")
    split = desk.job.request["split"]
    if split not in files:
        raise Invalid(Problem(("split",), "the data set has no such split", split, sorted(files)))
    return files[split]


class Parts:
    """Keeps answers, so that another run goes on from there, and tells how far it is.

    A run that is told to end keeps what it has, unless the job is cancelled.
    """

    def __init__(self, desk: Desk, prediction_type: type[BaseModel], total: int) -> None:
        self._desk, self._prediction_type, self._total = desk, prediction_type, total
        self._tables: list[pl.DataFrame] = []
        self._kept = max((stop for stop, _ in _parts_of(desk)), default=0)
        self.stop = self._first = self._kept
        """The inputs up to here have an answer."""
        self._began = self._wrote = time.monotonic()
        self._reported = 0.0

    def __enter__(self) -> Self:
        begin = f"going on at input {self.stop} of" if self.stop else "predicting for"
        self._report([("info", f"{begin} {self._total} inputs, on {self._desk.device}")])
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raises Fenced and Unreachable."""
        if error is None or (isinstance(error, Told) and error.command != "cancel"):
            self._keep()

    def add(self, answers: list[Answer]) -> None:
        """Note the answers for the next inputs. Raises Fenced and Unreachable."""
        self._tables.append(table(answers, self._prediction_type))
        self.stop += len(answers)
        seconds = time.monotonic() - self._wrote
        size = sum(frame.estimated_size() for frame in self._tables)
        is_large = size >= PART_BYTES or self.stop - self._kept >= PART_ANSWERS
        if is_large or seconds >= self._desk.settings.checkpoint_seconds:
            self._keep()
        elif time.monotonic() - self._reported >= REPORT_SECONDS:
            self._report()

    def _keep(self) -> None:
        """Make a part of the answers since the last one."""
        if not self._tables:
            return
        with _folder(self._desk) as folder:
            path = Path(folder, "part.parquet")
            pl.concat(self._tables).write_parquet(path)
            persist(lambda: self._publish(path))
        self._tables, self._kept, self._wrote = [], self.stop, time.monotonic()

    def _publish(self, path: Path) -> None:
        job, blob_id = self._desk.job, blobs.put(self._desk.database, path)
        with self._desk.database.transaction() as session:
            artifacts.add_part(
                session,
                job.id,
                job.lease_epoch,
                start=self._kept,
                stop=self.stop,
                blob_id=blob_id,
            )
            jobs.record(session, job.id, job.lease_epoch, progress=self._progress())

    def _report(self, told: list[tuple[str, str]] | None = None) -> None:
        """Write how far it is; an outage of the database is no reason to wait. Raises Fenced."""
        job, self._reported = self._desk.job, time.monotonic()
        try:
            with self._desk.database.transaction() as session:
                progress = self._progress()
                jobs.record(session, job.id, job.lease_epoch, progress=progress, lines=told or ())
        except Unreachable:
            return

    def _progress(self) -> dict[str, float | None]:
        done, left = self.stop - self._first, self._total - self.stop
        pace = (time.monotonic() - self._began) / done if done else None
        return {
            "rows_done": self.stop,
            "rows": self._total,
            "percent": round(100 * self.stop / max(1, self._total), 1),
            "eta_seconds": None if pace is None else round(left * pace, 1),
        }


def publish(desk: Desk, trained: Trained) -> None:
    """Put the parts together, as lines and as a table, and end the job.

    Raises Invalid when there is no prediction at all: something is wrong with the inputs as a whole.
    """
    prediction_type = trained.task.answer_type
    parts = [desk.materials.blob(blob_id) for _, blob_id in _parts_of(desk)]
    with _folder(desk) as name:
        folder, rows, failed = Path(name), 0, 0
        failures: list[dict[str, Any]] = []
        with (folder / LINES).open("wb") as file:
            for part in desk.heard(map(pl.read_parquet, parts)):
                file.writelines(lines(part, prediction_type))
                faulty = part.filter(pl.col("errors").is_not_null())
                rows, failed = rows + part.height, failed + faulty.height
                shown = lines(faulty.head(FAILURES - len(failures)), prediction_type)
                failures += map(json.loads, shown)
        if failed == rows:
            raise Invalid(*_none_predicted(failures))
        pl.scan_parquet(parts, glob=False).sink_parquet(folder / TABLE)
        result = {"rows": rows, "predicted": rows - failed, "failed": failed, "failures": failures}
        persist(lambda: _end(desk, folder, result))


def _parts_of(desk: Desk) -> list[tuple[int, str]]:
    with desk.database.transaction(read_only=True) as session:
        return artifacts.parts(session, desk.job.id)


def _none_predicted(failures: list[dict[str, Any]]) -> list[Problem]:
    """What is wrong with the first inputs, when something is wrong with each of them."""
    found = [Problem(**problem) for failure in failures for problem in failure["errors"]]
    return [p._replace(msg=f"no input can be predicted for, this one: {p.msg}") for p in found]


def _end(desk: Desk, folder: Path, result: dict[str, Any]) -> None:
    """Upload what is large, then have it take the place of the parts as the job ends."""
    database, job = desk.database, desk.job
    stored = {name: blobs.put(database, folder / name) for name in MEDIA_TYPES}
    with database.transaction() as session:
        artifacts.add_all(session, job.id, job.lease_epoch, stored, MEDIA_TYPES)
        artifacts.drop_parts(session, job.id)
        jobs.finish(session, job.id, job.lease_epoch, "succeeded", result=result)


def _folder(desk: Desk) -> TemporaryDirectory[str]:
    """For files until they are stored; the cache removes what a run that was killed leaves."""
    return TemporaryDirectory(dir=desk.settings.cache_dir, prefix=".predictions-")
