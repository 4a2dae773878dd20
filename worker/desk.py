"""What a trainer has at hand for its job, and the ways to hand the job back."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from models.parts.precision import choose_kernels
from store import checkpoints, datasets, jobs
from store.columns import Object
from store.session import Database, connect
from store.tables import Checkpoint, Job
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained
from worker.cache import Cache
from worker.group import ALONE, Group
from worker.materials import Materials
from worker.outages import persist
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Inbox

T = TypeVar("T")


class Told(Exception):
    """The run is to end here, for the command that came."""

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.command = command


class Desk(NamedTuple):
    """One run of one job."""

    job: Job
    database: Database
    materials: Materials
    settings: WorkerSettings
    device: str
    inbox: Inbox
    group: Group

    @property
    def base(self) -> Trained | None:
        """The model to start from, if there is one. Raises NotFound."""
        if self.job.base_checkpoint_id is None:
            return None
        return self.materials.trained(self.materials.checkpoint(self.job.base_checkpoint_id))

    @property
    def base_files(self) -> dict[str, str]:
        """The blob of each split of the data set that the base learned from. Raises Invalid when that was deleted."""
        with self.database.transaction(read_only=True) as session:
            found = checkpoints.dataset_of(session, self.job.base_checkpoint_id or "")
            if found is not None:
                return datasets.files(session, found)
        raise Invalid(Problem(("base",), "the data set that it learned from was deleted"))

    def evaluation(self, trained: Trained, blob_id: str) -> tuple[dict[str, Any], int]:
        """What a model is worth on the split that is this blob, and how many examples that has. Raises Told."""
        examples = self.materials.examples(blob_id)
        split = self.materials.split(blob_id, examples, trained.task, trained.codec, self.go_on)
        *_, predictions = self.heard(trained.answering(split.columns))
        assert predictions is not None
        return trained.task.evaluate(predictions, split.examples), split.columns.examples

    @property
    def best(self) -> Checkpoint:
        """The job's best checkpoint, which every training has saved before it ends."""
        with self.database.transaction(read_only=True) as session:
            found = checkpoints.chosen(session, self.job.id)
        assert found is not None
        return found

    def heard(self, work: Iterator[T]) -> Iterator[T]:
        """Work that ends early when the run is to end. Raises Told."""
        for piece in work:
            self.go_on()
            yield piece

    def go_on(self) -> None:
        """Look whether the run is to end. Raises Told."""
        command = self.inbox.look()
        if command not in (None, "stop"):
            raise Told(command)

    def finish(self, status: jobs.End, **outcome: Any) -> None:
        """End the job for good. Raises Fenced and Unreachable."""

        def write() -> None:
            with self.database.transaction() as session:
                jobs.finish(session, self.job.id, self.job.lease_epoch, status, **outcome)

        persist(write)

    def give_back(self, reason: Object | None = None, spec: Object | None = None) -> None:
        """Let the job go on later, here or elsewhere, as `spec` says. Raises Fenced and Unreachable."""

        def write() -> None:
            with self.database.transaction() as session:
                jobs.release(
                    session,
                    self.job.id,
                    self.job.lease_epoch,
                    charge=False,
                    reason=reason,
                    spec=spec,
                )

        persist(write)


@contextmanager
def sit_down(
    assignment: Assignment, settings: WorkerSettings, inbox: Inbox, group: Group = ALONE
) -> Iterator[Desk]:
    """Where the run is done. Raises Fenced when somebody else has the job, and Unreachable."""
    database = connect(settings.database)

    def hold() -> Job:
        with database.transaction() as session:
            return jobs.fence(session, assignment.job_id, assignment.lease_epoch)

    cache = Cache(settings.cache_dir, settings.training_cache_bytes)
    materials = Materials(database, cache)
    try:
        yield Desk(persist(hold), database, materials, settings, assignment.device, inbox, group)
    finally:
        shutil.rmtree(kernels_folder(assignment, settings), ignore_errors=True)
        materials.close()
        cache.close()
        database.dispose()


def settle(assignment: Assignment, settings: WorkerSettings) -> None:
    """Have torch use the slot's cores, and be able to compute the same bits whenever it is asked the same."""
    torch.set_num_threads(assignment.threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kernels_folder(assignment, settings))
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    choose_kernels("float32", deterministic=True)  # until the job's own choice is known
    if assignment.device != "cpu":
        torch.cuda.set_device(assignment.device)


def kernels_folder(assignment: Assignment, settings: WorkerSettings) -> Path:
    """Where compiled kernels are loaded from: nobody else may write there."""
    return settings.cache_dir / f".kernels-{assignment.job_id}"
