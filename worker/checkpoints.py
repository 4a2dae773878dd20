"""A training's best and last state on their way into the database and back."""

import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from safetensors.torch import load_file, save_file
from sqlalchemy.orm import Session
from torch import Tensor

from models.base import Learner
from store import blobs, checkpoints, leases
from store import metrics as curves
from store.session import Database
from store.tables import Checkpoint, Job
from tasks.base import Codec
from tasks.trained import save_weights
from worker.group import ALONE, Group
from worker.loop import State
from worker.materials import Materials
from worker.outages import persist
from worker.settings import WorkerSettings
from worker.snapshots import Snapshot


class Position(NamedTuple):
    """Where a training stands."""

    state: State
    seconds: float
    """How long it has been running, all runs of the job together."""


class _Best(NamedTuple):
    at: Position
    weights: dict[str, Tensor]


class Checkpoints:
    """Keeps the best and the last state of a running job.

    Both are copied at once and written in the background. The best one waits in memory for the next
    last one, and both become visible together: a crash cannot lose a best state that the resumed
    training would not come by again.

    A checkpoint is due `checkpoint_seconds` after the one before, or later, so that what checkpoints
    cost the training stays below `checkpoint_share` of its time: the time it stands still for the
    copies, and the processor's time for writing them.
    """

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        job: Job,
        codec: Codec,
        group: Group = ALONE,
    ) -> None:
        self._database, self._job, self._group = database, job, group
        self._codec = codec.model_dump_json().encode()
        self._folder, self._prefix = settings.cache_dir, f".checkpoint-{job.id}-"
        for left in self._folder.glob(f"{self._prefix}*"):  # by a run of this job that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._every, self._share = settings.checkpoint_seconds, settings.checkpoint_share
        self._due = time.monotonic() + self._every
        self._cost = 0.0
        """Seconds that it cost to copy and write since the last checkpoint was taken."""
        self._best: _Best | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._thread.shutdown()

    def hold_best(self, learner: Learner, at: Position) -> None:
        """Keep this state as the best so far."""
        began = time.monotonic()
        self._best = _Best(at, self._group.take_weights(learner))
        self._cost += time.monotonic() - began

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint. Raises what went wrong with the one before."""
        if self._writing is not None and self._writing.done():
            self._writing.result()
            self._writing = None
        return self._writing is None and time.monotonic() >= self._due

    def save(self, learner: Learner, at: Position) -> None:
        """Take this state as the last one; it is written while the training goes on."""
        self.wait()
        taken_at = time.monotonic()
        last, best, self._best = self._group.take(learner), self._best, None
        cost, self._cost = self._cost + time.monotonic() - taken_at, 0.0
        self._writing = self._thread.submit(self._write, at, last, best, taken_at, cost)

    def wait(self) -> None:
        """Have what was saved be in the database. Raises Fenced and Unreachable."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(
        self, at: Position, last: Snapshot, best: _Best | None, taken_at: float, cost: float
    ) -> None:
        began = time.thread_time()
        persist(lambda: self._publish(at, last, best))
        cost += time.thread_time() - began
        # A crash costs what came after the copy, so the time that writing takes counts as well.
        took = time.monotonic() - taken_at
        self._due = taken_at + max(self._every - took, cost / self._share)

    def _publish(self, at: Position, last: Snapshot, best: _Best | None) -> None:
        """Upload what is large, then make both visible at once."""
        is_best = best is not None and best.at.state.step == at.state.step
        rows = [self._row(at, last, is_best=is_best)]
        if best is not None and not is_best:
            rows.insert(0, self._row(best.at, Snapshot(best.weights, {}, {}, {}), is_best=True))
        with self._database.transaction() as session:
            for row in rows:
                checkpoints.publish(session, self._job.id, self._job.lease_epoch, **row)

    def _row(self, at: Position, taken: Snapshot, *, is_best: bool) -> dict[str, Any]:
        state = at.state
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=self._prefix) as folder:
            save_weights(taken.weights, weights := Path(folder) / "weights")
            save_file(taken.memory, memory := Path(folder) / "memory")
            return {
                "step": state.step,
                "epoch": state.epoch,
                "metrics": state.metrics if is_best else {},
                "value": state.best if is_best else None,
                "is_best": is_best,
                "weights_blob": blobs.put(self._database, weights),
                "codec_blob": blobs.put_bytes(self._database, self._codec),
                "state_blob": blobs.put(self._database, memory),
                "state": {
                    "loop": state.model_dump(mode="json"),
                    "seconds": at.seconds,
                    "optimizers": taken.settings,
                    "loss_scale": taken.loss_scale,
                },
                "spec": self._job.spec,
            }


def newest(database: Database, job: Job) -> Checkpoint | None:
    """Where the job goes on: its own last checkpoint, else the one it was asked to start from.

    Forgets what was told of steps after it, since they will be made again. Raises Fenced.
    """
    with database.transaction() as session:
        leases.fence(session, job.id, job.lease_epoch)
        found = checkpoints.last(session, job.id)
        if found is None and job.resume_checkpoint_id is not None:
            found = _adopt(session, job, checkpoints.load(session, job.resume_checkpoint_id))
        curves.truncate(session, job.id, found.step if found else -1)
        return found


def last(database: Database, job: Job) -> Checkpoint | None:
    """The job's last checkpoint, where rank 0 goes on."""
    with database.transaction(read_only=True) as session:
        return checkpoints.last(session, job.id)


def _adopt(session: Session, job: Job, first: Checkpoint) -> Checkpoint:
    """Make another job's checkpoint this job's own, and its best one too: it is what there is to beat."""
    best = checkpoints.best(session, first.job_id) if first.job_id else None
    if best is not None and best.step < first.step:
        _publish_again(session, job, best, is_best=True)
        return _publish_again(session, job, first, is_best=False)
    return _publish_again(session, job, first, is_best=True)


def _publish_again(session: Session, job: Job, row: Checkpoint, *, is_best: bool) -> Checkpoint:
    same = ("step", "epoch", "metrics", "value", "weights_blob", "codec_blob", "state_blob")
    # The training before may have ended here; this one goes on, on time of its own.
    state = {**row.state, "loop": {**row.state["loop"], "finished": False}, "seconds": 0.0}
    return checkpoints.publish(
        session,
        job.id,
        job.lease_epoch,
        **{name: getattr(row, name) for name in same},
        is_best=is_best,
        state=state,
        spec=job.spec,
    )


def restore(
    learner: Learner, checkpoint: Checkpoint, materials: Materials, group: Group = ALONE
) -> Position:
    """Put a started learner where the checkpoint was taken."""
    memory = load_file(materials.blob(checkpoint.state_blob)) if checkpoint.state_blob else {}
    weights = load_file(materials.blob(checkpoint.weights_blob))
    settings = checkpoint.state["optimizers"] if memory else {}
    loss_scale = checkpoint.state.get("loss_scale", {})
    group.put_back(learner, Snapshot(weights, memory, settings, loss_scale))
    state = State.model_validate(checkpoint.state["loop"])
    return Position(state, checkpoint.state["seconds"])
