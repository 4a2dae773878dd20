"""The whole web side on a real database, and what a worker would do to it."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4
from zipfile import ZipFile

import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import save
from sqlalchemy import update

from store import blobs, checkpoints, jobs, keys, projects
from store.session import Database
from store.tables import Checkpoint, Job

ADMIN_KEY = "an admin key for tests"
TASK = "tabular-classification"
ROWS = "a,b,label\n" + "".join(
    f"{i},{i * 2 % 7},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(40)
)
FOLDER: dict[str, bytes] = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}),
    "tokenizer.json": b"{}",
    "vocab.txt": b"a\nb\n",
}
"""A checkpoint in the Hub's layout, of no use."""
FIRST = 1_000
"""Priority of the job that is taken next."""
UPLOAD_BYTES, BODY_BYTES = 200_000, 100_000


def zipped(files: Mapping[str, bytes], top: str = "") -> bytes:
    """Files in a zip, in the folder `top`."""
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return buffer.getvalue()


CHECKPOINT = ("our.zip", zipped(FOLDER))


class Service(NamedTuple):
    """The running application."""

    app: FastAPI
    data_dir: Path
    start: TestClient

    @property
    def database(self) -> Database:
        found: Database = self.app.state.database
        return found

    def client(self, key: str | None) -> TestClient:
        """Somebody who sends this key."""
        client = TestClient(self.app, raise_server_exceptions=False)
        client.portal = self.start.portal
        if key is not None:
            client.headers["Authorization"] = f"Bearer {key}"
        return client

    def key(self, *scopes: str, project: str | None = None, **more: Any) -> str:
        """A new key, by default of a new project."""
        with self.database.transaction() as session:
            owner = projects.ensure(session, project or uuid4().hex)
            return keys.create(session, owner.id, "test", scopes, **more)[1]


class Worker:
    """What a worker does to the database, one transaction each."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def take(self, job_id: str) -> Job:
        """Make the job this worker's."""
        with self.database.transaction() as session:
            # Whatever another test took before and gave back comes after it.
            session.execute(update(Job).where(Job.priority == FIRST).values(priority=0))
            jobs.load(session, job_id).priority = FIRST
        with self.database.transaction() as session:
            all_there_are = {"free": 64, "devices": 64}
            job = jobs.claim(session, uuid4().hex, ["cpu", "gpu"], 60, "worker", **all_there_are)
        assert job is not None
        assert job.id == job_id
        return job

    def save(self, job: Job, step: int = 1, weights: bytes = b"") -> Checkpoint:
        blob = blobs.put_bytes(self.database, weights or uuid4().bytes * 100)
        with self.database.transaction() as session:
            return checkpoints.publish(
                session,
                job.id,
                job.lease_epoch,
                step=step,
                epoch=step,
                metrics={"validation": {"accuracy": 0.5}},
                value=0.5,
                is_best=True,
                weights_blob=blob,
                codec_blob=blob,
                state_blob=None,
                state={},
                spec=job.spec,
            )

    def record(self, job: Job, **what: Any) -> None:
        with self.database.transaction() as session:
            jobs.record(session, job.id, job.lease_epoch, **what)

    def finish(self, job: Job, status: Any = "succeeded", **more: Any) -> None:
        with self.database.transaction() as session:
            jobs.finish(session, job.id, job.lease_epoch, status, **more)

    def succeed(self, job_id: str) -> Checkpoint:
        """Run the job to its end."""
        job = self.take(job_id)
        checkpoint = self.save(job)
        self.finish(job)
        return checkpoint


def errors_of(answer: Any, status: int = 422) -> list[dict[str, Any]]:
    """The faults that a problem document lists."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["instance"] == answer.headers["X-Request-Id"]
    errors: list[dict[str, Any]] = document["errors"]
    return errors
