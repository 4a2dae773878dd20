"""A database with models that were really trained, for tests of what serves them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4
from zipfile import ZipFile

import torch
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import SecretStr

from api.app import create_app
from api.settings import ApiSettings
from models.mlp import MLP
from models.parts.training import Training
from store import blobs, checkpoints, datasets, jobs, projects
from store.session import Database
from store.tables import Checkpoint, Job
from tasks import catalog
from tasks.base import Facts, Upload
from tasks.catalog import Spec
from tasks.tabular_classification import TabularClassification
from tasks.trained import Trained, save_weights
from tests.toys import toy

TASK = "tabular-classification"


class Example(NamedTuple):
    """A trained model, what it was trained by, and the data set's facts."""

    spec: Spec
    trained: Trained
    facts: Facts


@cache
def train(seed: int = 0, width: int = 8) -> Example:
    """A classifier of rows: whether a + b is positive, with a category that shifts it."""
    rows = ["a,b,kind,label"]
    draw = random.Random(seed)
    for _row in range(120):
        a, b, kind = draw.gauss(0, 1), draw.gauss(0, 1), draw.choice(["x", "y"])
        label = "high" if a + b + (0.5 if kind == "x" else -0.5) > 0 else "low"
        rows.append(f"{a},{b},{kind},{label}")
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        path.write_text("\n".join(rows))
        options = TabularClassification.options_type()
        checked = TabularClassification.check({"file": Upload(path, "rows.csv")}, options)
    facts = Facts(checked.schema, {name: f.height for name, f in checked.splits.items()})
    task = TabularClassification(architecture=MLP(layers=1, width=width))
    spec = catalog.resolve(TASK, facts, task, Training(epochs=3, batch_size=32), None)
    return Example(spec, _fit(spec, checked.splits["train"], checked.schema), facts)


def _fit(spec: Spec, examples: Any, schema: dict[str, Any]) -> Trained:
    torch.manual_seed(0)
    codec = spec.task.learn_codec(examples.lazy(), schema)
    columns = codec.encode(examples)
    learner = spec.task.build(codec)
    learner.start(spec.training, None, 60)
    learner.enter_epoch(0)
    for step in range(60):
        learner.train_step(columns.batch(torch.randint(columns.examples, (32,))), step)
    learner.eval()
    return Trained(spec.task, codec, learner)


def picture(colour: str, side: int = 12) -> bytes:
    """A PNG of one colour."""
    packed = BytesIO()
    Image.new("RGB", (side, side), colour).save(packed, "PNG")
    return packed.getvalue()


@cache
def image_example() -> Example:
    """A classifier of red and blue pictures that has learned next to nothing."""
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        for number in range(8):
            for colour in ("red", "blue"):
                archive.writestr(f"{colour}/{number}.png", picture(colour, 8))
    return _untrained("image-classification", "pictures.zip", packed.getvalue())


@cache
def table_example(task: str, csv: str) -> Example:
    """A model for these rows that has learned next to nothing."""
    return _untrained(task, "rows.csv", csv.encode())


def _untrained(name: str, file: str, content: bytes) -> Example:
    with TemporaryDirectory() as folder:
        path = Path(folder, file)
        path.write_bytes(content)
        return _of_upload(name, {"file": Upload(path, file)})


@cache
def untrained(task: str) -> Example:
    """A model for that task's toy data that has learned nothing but its codec."""
    with TemporaryDirectory() as folder:
        return _of_upload(task, toy(task, Path(folder), 60))


def _of_upload(name: str, files: dict[str, Upload]) -> Example:
    task = catalog.task_named(name)
    checked = task.check(files, task.options_type())
    facts = Facts(checked.schema, {split: f.height for split, f in checked.splits.items()})
    spec = catalog.resolve(name, facts, None, Training(), None)
    torch.manual_seed(0)
    codec = spec.task.learn_codec(checked.splits["train"].lazy(), checked.schema)
    return Example(spec, Trained(spec.task, codec, spec.task.build(codec).eval()), facts)


def row(number: int) -> dict[str, Any]:
    """One of many different inputs."""
    draw = random.Random(number)
    return {"a": draw.gauss(0, 1), "b": draw.gauss(0, 1), "kind": draw.choice("xy")}


class World:
    """What tests do to the database, a transaction each."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as session:
            self.project = projects.ensure(session, "default").id
            self.other = projects.ensure(session, "other").id
        self.dataset = self.new_dataset()

    def new_dataset(self, task: str = TASK, splits: tuple[str, ...] = ("train", "test")) -> str:
        with self.database.transaction() as session:
            row = datasets.create(
                session,
                self.project,
                name="rows",
                task=task,
                options={},
                schema={},
                report={},
                splits=dict.fromkeys(splits, 10),
                size_bytes=1,
                files={},
            )
            return row.id

    def start(self, name: str = "rows", example: Example | None = None) -> Job:
        """A training that runs and has no checkpoint yet."""
        with self.database.transaction() as session:
            jobs.create(
                session,
                self.project,
                kind="train",
                name=name,
                dataset_id=self.dataset,
                task=TASK,
                spec=(example or train()).spec.model_dump(mode="json"),
                request={},
                queue="cpu",
            )
            job = jobs.claim(session, uuid4().hex, ["cpu"], 30, "worker")
            assert job is not None
            return job

    def save(self, job: Job, example: Example | None = None, step: int = 1) -> Checkpoint:
        """A checkpoint of a running job."""
        example = example or train()
        with TemporaryDirectory() as folder:
            path = Path(folder, "weights.safetensors")
            save_weights(example.trained.learner.state_dict(), path)
            weights = blobs.put(self.database, path)
        codec = blobs.put_bytes(self.database, example.trained.codec.model_dump_json().encode())
        with self.database.transaction() as session:
            return checkpoints.publish(
                session,
                job.id,
                job.lease_epoch,
                step=step,
                epoch=1,
                metrics={"validation": {"accuracy": 0.9}},
                value=0.9,
                is_best=True,
                weights_blob=weights,
                codec_blob=codec,
                state_blob=None,
                state={},
                spec=example.spec.model_dump(mode="json"),
            )

    def finish(self, job: Job, status: Any = "succeeded") -> None:
        metrics = {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
        with self.database.transaction() as session:
            jobs.finish(session, job.id, job.lease_epoch, status, metrics=metrics)

    def publish(self, name: str = "rows", example: Example | None = None) -> Checkpoint:
        """The next version of the model `name`."""
        job = self.start(name, example)
        checkpoint = self.save(job, example)
        self.finish(job)
        return checkpoint


KEY = "an admin key for tests"


@contextmanager
def client(world: World, folder: Path, **settings: Any) -> Iterator[TestClient]:
    """The whole application on the world's database, asked with an admin key."""
    url = world.database.engine.url.render_as_string(hide_password=False)
    found = ApiSettings(data_dir=folder, database_url=url, admin_key=SecretStr(KEY), **settings)
    headers = {"Authorization": f"Bearer {KEY}"}
    with TestClient(create_app(found), headers=headers, raise_server_exceptions=False) as opened:
        yield opened
