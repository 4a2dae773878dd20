"""A database with data sets and jobs on them, and trainers that run in the test's own process."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from unittest.mock import patch
from uuid import uuid4

import polars as pl
from safetensors.torch import load
from sqlalchemy import update
from torch import Tensor

import worker.jobs
from models.parts.pretrained import Pretrained
from models.parts.published import Published
from models.parts.training import Training, Transfer
from store import blobs, checkpoints, datasets, jobs, pretrained, projects
from store.session import Database, now
from store.tables import Checkpoint, Dataset, Job
from tasks import catalog
from tasks.base import Facts, Task, Upload
from tasks.catalog import Spec
from tasks.trained import Trained
from tests.conftest import opened
from tests.published import find
from worker.cache import Cache
from worker.loop import fit
from worker.materials import Materials
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit, Inbox


class Orders(Inbox):
    """An inbox into which a command comes after so many looks: one after each step and each batch judged."""

    def __init__(self, command: Command | None = None, after: int = 0) -> None:
        self._command, self._after, self._looks = command, after, 0

    def look(self) -> Command | None:
        self._looks += 1
        return self._due() if self._looks > self._after else None

    def _due(self) -> Command | None:
        return self._command


class Crash(Orders):
    """Ends the run after so many steps as nothing in it expects."""

    def __init__(self, after: int) -> None:
        super().__init__(None, after)

    def _due(self) -> Command | None:
        crash()


def crash(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


class Shop:
    """What users and workers do, a transaction each, so that tests read as a story."""

    def __init__(self, database: Database, url: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.settings = WorkerSettings(
            database_url=url, data_dir=folder, devices="cpu", threads=1, _env_file=None
        )
        self.settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with database.transaction() as session:
            self.project = projects.ensure(session, "default").id

    def act(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of the store in a transaction of its own."""
        with self.database.transaction() as session:
            return function(session, *arguments, **options)

    def upload(self, task: str, csv: str, name: str = "toys") -> Dataset:
        """A checked data set, a fifth of it held out for validation and a fifth for the test."""
        path = self.folder / f"{uuid4().hex}.csv"
        path.write_text(csv)
        return self.store(task, {"file": Upload(path, path.name)}, name)

    def store(self, task: str, uploads: Mapping[str, Upload], name: str = "toys") -> Dataset:
        """Like `upload`, of files in whatever format the task reads."""
        kind = catalog.task_named(task)
        given = {"split": {"fraction": 0.2, "test_fraction": 0.2}}
        checked = kind.check(uploads, kind.options_type.model_validate(given))
        files = {}
        for split, frame in checked.splits.items():
            frame.write_parquet(path := self.folder / f"{split}.parquet", row_group_size=10)
            files[split] = blobs.put(self.database, path)
        found: Dataset = self.act(
            datasets.create,
            self.project,
            name=name,
            task=task,
            options=given,
            schema=checked.schema,
            report=checked.report,
            splits={split: frame.height for split, frame in checked.splits.items()},
            size_bytes=sum(upload.path.stat().st_size for upload in uploads.values()),
            files=files,
        )
        return found

    def submit(
        self,
        dataset: Dataset,
        architecture: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        transfer: Transfer | None = None,
        base: Checkpoint | None = None,
        **options: Any,
    ) -> Job:
        """A queued training."""
        spec = self.spec(dataset, architecture, training, transfer, base)
        given = {
            "kind": "train",
            "name": dataset.name,
            "dataset_id": dataset.id,
            "task": dataset.task,
            "spec": spec.model_dump(mode="json"),
            "request": {},
            "queue": "cpu",
            "base_checkpoint_id": base.id if base else None,
        }
        found: Job = self.act(jobs.create, self.project, **(given | options))
        return found

    def spec(
        self,
        dataset: Dataset,
        architecture: dict[str, Any] | None,
        training: dict[str, Any] | None,
        transfer: Transfer | None = None,
        base: Checkpoint | None = None,
    ) -> Spec:
        asked = {"name": dataset.task} | ({"architecture": architecture} if architecture else {})
        task: Task = catalog.task_named(dataset.task).model_validate(asked)
        started_from = catalog.read_spec(base.spec).task if base else None
        return catalog.resolve(
            dataset.task,
            Facts(dataset.schema, dataset.splits),
            self._begun(task),
            Training.model_validate(training or {}),
            transfer,
            started_from,
        )

    def _begun(self, task: Task) -> Task:
        """The task, whose pretrained architecture begins with a tiny checkpoint that was uploaded."""
        if not isinstance(task.architecture, Pretrained):
            return task
        folder = find(task.architecture).folder
        files = {path.name: blobs.put(self.database, path) for path in folder.iterdir()}
        kept = self.act(
            pretrained.create,
            self.project,
            name="tiny",
            model_type="tiny",
            size_bytes=0,
            files=files,
        )
        named = task.architecture.model_copy(update={"checkpoint": kept.id})
        begun = task.model_copy(update={"architecture": named})
        return catalog.grounded(begun, lambda _: Published(folder))

    def claimed(self, job: Job) -> Job:
        """The queued job, taken by a worker."""
        claimed: Job | None = self.act(jobs.claim, uuid4().hex, ["cpu"], 60.0, "wrk_test")
        assert claimed is not None
        assert claimed.id == job.id
        return claimed

    def work(self, job: Job, orders: Orders | None = None, **changed: Any) -> Exit:
        """Be the trainer of a claimed job, with settings `changed`."""
        settings = self.settings.model_copy(update=changed)
        assignment = Assignment(job.id, job.lease_epoch, "cpu", 1)
        interval = 0.0 if orders else 0.5
        with patch.object(worker.jobs, "fit", partial(fit, interval=interval)):
            return worker.jobs.run(assignment, settings, orders or Orders())

    def train(self, job: Job, orders: Orders | None = None, **changed: Any) -> Exit:
        """Claim a queued job and be its trainer."""
        return self.work(self.claimed(job), orders, **changed)

    def lose(self, job: Job) -> None:
        """Have the lease of a running job run out, and the job be ready again."""
        with self.database.transaction() as session:
            past = now(session).replace(year=2000)
            session.execute(update(Job).where(Job.id == job.id).values(lease_until=past))
            assert jobs.reap(session) == [job.id]
            session.execute(update(Job).where(Job.id == job.id).values(available_at=past))

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        return load(b"".join(blobs.read(self.database, checkpoint.weights_blob)))

    def trained(self, checkpoint: Checkpoint) -> Trained:
        """The model that a checkpoint is."""
        with TemporaryDirectory() as folder:
            cache = Cache(Path(folder), 1 << 30)
            return Materials(self.database, cache).trained(checkpoint)

    def examples(self, dataset: Dataset, split: str) -> pl.DataFrame:
        blob = self.act(datasets.files, dataset.id)[split]
        return pl.read_parquet(BytesIO(b"".join(blobs.read(self.database, blob))))

    def job(self, job: Job) -> Job:
        """The row as it is now."""
        found: Job = self.act(jobs.load, job.id)
        return found

    def best(self, job: Job) -> Checkpoint:
        found: Checkpoint | None = self.act(checkpoints.best, job.id)
        assert found is not None
        return found

    def last(self, job: Job) -> Checkpoint:
        found: Checkpoint | None = self.act(checkpoints.last, job.id)
        assert found is not None
        return found


def rows(count: int = 200, seed: int = 0, noise: float = 0.0) -> str:
    """A table whose label says whether a + b is positive, with a category that shifts it."""
    draw = random.Random(seed)
    lines = ["a,b,kind,label"]
    for _ in range(count):
        a, b, kind = draw.gauss(0, 1), draw.gauss(0, 1), draw.choice("xy")
        value = a + b + (0.5 if kind == "x" else -0.5) + draw.gauss(0, 1) * noise
        lines.append(f"{a},{b},{kind},{'high' if value > 0 else 'low'}")
    return "\n".join(lines)


def pairs(examples: int = 60) -> str:
    """Queries and the texts that answer them, word for word the same but for one."""
    draw = random.Random(0)
    things = ["house", "tree", "river", "garden", "street", "bridge"]
    lines = [
        f"where is {thing} {number}?,The {thing} {number} lies in the {draw.choice(things)} quarter."
        for number in range(examples)
        for thing in [things[number % len(things)]]
    ]
    return "\n".join(["query,text", *lines])


def texts(count: int = 200, seed: int = 0) -> str:
    """Reviews whose label follows from one of their words."""
    draw = random.Random(seed)
    filler = ["the", "film", "was", "a", "story", "of", "two", "people", "in", "town"]
    good, bad = ["wonderful", "great", "lovely"], ["dreadful", "boring", "awful"]
    lines = ["text,label"]
    for place in range(count):
        words = draw.choices(filler, k=draw.randint(4, 12))
        words.insert(draw.randrange(len(words)), draw.choice(good if place % 2 else bad))
        lines.append(f"{' '.join(words)},{'good' if place % 2 else 'bad'}")
    return "\n".join(lines)


@contextmanager
def shop_in(folder: Path, template: Path) -> Iterator[Shop]:
    """A shop on a copy of a migrated SQLite database, for all tests of a module."""
    url = f"sqlite:///{shutil.copy(template, folder / 'store.sqlite')}"
    with opened(url) as database:
        yield Shop(database, url, folder)
