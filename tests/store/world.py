"""A small world in a database: a project, a data set, and jobs of it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from store import blobs, checkpoints, datasets, jobs, projects
from store.errors import Fenced
from store.session import _CLOCKS, Database, now
from store.tables import Checkpoint, Dataset, Job

TTL = 30.0
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class Clock:
    """The database's clock, standing still where a test puts it, until the test's end."""

    def __init__(self, database: Database, patch: pytest.MonkeyPatch) -> None:
        """It is far from the real time, so that whoever looks at another clock is found out."""
        self._dialect, self._patch = database.dialect, patch
        self.set(LONG_AGO)

    def set(self, moment: datetime) -> None:
        self.now = moment
        literal = f"'{moment:%Y-%m-%d %H:%M:%S.%f}'"
        if self._dialect == "postgresql":
            literal = f"timestamptz {literal}"
        self._patch.setitem(_CLOCKS, self._dialect, literal)

    def move(self, seconds: float) -> None:
        """Let time pass, or set the clock back."""
        self.set(self.now + timedelta(seconds=seconds))


class World:
    """What tests do, a transaction each, so that they read as a story."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as session:
            self.project = projects.ensure(session, "default").id
            self.other_project = projects.ensure(session, "other").id
        self.blob = blobs.put_bytes(database, b"weights")
        self.dataset = self.new_dataset().id

    def new_dataset(self, project: str | None = None, task: str = "text-classification") -> Dataset:
        with self.database.transaction() as session:
            return datasets.create(
                session,
                project or self.project,
                name="reviews",
                task=task,
                options={"format": "csv"},
                schema={"columns": ["text", "label"]},
                report={"rows": 3},
                splits={"train": 2, "test": 1},
                size_bytes=7,
                files={"train": self.blob, "test": self.blob},
            )

    def submit(self, **options: Any) -> Job:
        given = {
            "kind": "train",
            "name": "reviews",
            "dataset_id": self.dataset,
            "task": "text-classification",
            "spec": {"task": {"name": "text-classification"}},
            "request": {},
            "queue": "cpu",
        }
        with self.database.transaction() as session:
            return jobs.create(session, self.project, **(given | options))

    def claim(self, *queues: str) -> Job | None:
        with self.database.transaction() as session:
            return jobs.claim(session, f"w/{uuid4().hex}", queues or ["cpu"], TTL, "w")

    def start(self, **options: Any) -> Job:
        """A new job, running."""
        job, claimed = self.submit(**options), self.claim()
        assert claimed is not None
        assert claimed.id == job.id
        return claimed

    def act(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a function of the store in a transaction of its own."""
        with self.database.transaction() as session:
            return function(session, *arguments, **options)

    def user(self, function: Any, job: Job, **options: Any) -> Any:
        """Do what a user asks for."""
        return self.act(function, self.project, job.id, **options)

    def holder(self, function: Any, job: Job, *arguments: Any, **options: Any) -> Any:
        """Do what the holder of this row's lease asks for."""
        return self.act(function, job.id, job.lease_epoch, *arguments, **options)

    def job(self, job: Job) -> Job:
        """The row as it is now."""
        found: Job = self.act(jobs.load, job.id)
        return found

    def save(self, job: Job, step: int = 1, *, is_best: bool = True, **options: Any) -> Checkpoint:
        """A checkpoint of a running job."""
        given = {
            "step": step,
            "epoch": step,
            "metrics": {"validation": {"accuracy": step / 10}},
            "value": step / 10,
            "is_best": is_best,
            "weights_blob": self.blob,
            "codec_blob": self.blob,
            "state_blob": None,
            "state": {"step": step},
            "spec": job.spec,
        }
        found: Checkpoint = self.holder(checkpoints.publish, job, **(given | options))
        return found

    def lose(self, job: Job) -> None:
        """Let the job's lease run out."""
        with self.database.transaction() as session:
            past = now(session).replace(year=2000)
            session.execute(update(Job).where(Job.id == job.id).values(lease_until=past))

    def hurry(self) -> None:
        """Let every delay be over."""
        with self.database.transaction() as session:
            past = now(session).replace(year=2000)
            session.execute(update(Job).values(available_at=past))

    def fenced(self, function: Any, job: Job, *arguments: Any, **options: Any) -> bool:
        """Whether the holder is refused."""
        try:
            self.holder(function, job, *arguments, **options)
        except Fenced:
            return True
        return False
