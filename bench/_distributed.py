"""One training for `bench.devices`: `python -m bench._distributed JOB MODE THREADS FILE`, by torchrun if of several."""

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench._service import digits_upload
from models.parts.training import Training
from tasks import catalog
from tasks.base import Facts, Upload
from tasks.trained import Trained
from worker.group import ALONE, Loss, Together
from worker.loop import Split, epoch_batches, fit, part, plan_of

JUDGED = 16
"""Examples of the validation split: judging is not what is measured."""


class Work(NamedTuple):
    """What is learned, from which file, for how many epochs."""

    task: dict[str, Any]
    write: Callable[[Path], Path]
    epochs: int
    batch_size: int


def main(job: str, mode: str, threads: int, told: Path) -> None:
    torch.set_num_threads(threads)
    if mode != "alone":
        dist.init_process_group("gloo")
    ends = _bare(job) if mode == "bare" else _by_the_loop(job, mode)
    examples, moments = ends
    if int(os.environ.get("RANK", 0)) == 0:
        told.write_text(json.dumps(examples * (len(moments) - 1) / (moments[-1] - moments[0])))
    if mode != "alone":
        dist.destroy_process_group()


def _by_the_loop(job: str, mode: str) -> tuple[int, list[float]]:
    trained, train, validation, training = _prepared(job)
    group = ALONE if mode == "alone" else Together(mmap(-1, 1))
    moments = []
    for news in fit(trained, train, validation, training, group=group):
        if news.state.step_in_epoch == 0:
            moments.append(time.monotonic())
    return train.columns.examples, moments


def _bare(job: str) -> tuple[int, list[float]]:
    """As short as can be, and as fast."""
    trained, train, _, training = _prepared(job)
    learner, rank, size = trained.learner, dist.get_rank(), dist.get_world_size()
    spread, optimizer = DistributedDataParallel(Loss(learner)), learner.optimizers["main"]
    moments = []
    for epoch in range(training.epochs):
        learner.train()
        for index in epoch_batches(learner, train.columns, training, epoch):
            loss = spread(train.columns.batch(index.tensor_split(size)[rank]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moments.append(time.monotonic())
    return train.columns.examples, moments


def _prepared(job: str) -> tuple[Trained, Split, Split, Training]:
    work = JOBS[job]
    kind = catalog.task_named(work.task["name"])
    with tempfile.TemporaryDirectory() as folder:
        path = work.write(Path(folder))
        checked = kind.check({"file": Upload(path, path.name)}, kind.options_type())
    facts = Facts(checked.schema, {name: frame.height for name, frame in checked.splits.items()})
    asked = Training(epochs=work.epochs, batch_size=work.batch_size)
    spec = catalog.resolve(kind.option_name(), facts, kind.model_validate(work.task), asked, None)
    codec = spec.task.learn_codec(checked.splits["train"].lazy(), checked.schema)
    splits = {name: Split(codec.encode(frame), frame) for name, frame in checked.splits.items()}
    torch.manual_seed(0)
    learner = spec.task.build(codec)
    train = splits["train"]
    learner.start(spec.training, None, plan_of(learner, train.columns, spec.training).steps)
    judged = part(splits["validation"], torch.arange(JUDGED))
    return Trained(spec.task, codec, learner), train, judged, spec.training


def _table(folder: Path) -> Path:
    """Sixteen numbers, and whether most of them are positive."""
    draw = random.Random(0)
    lines = [",".join([*(f"n{number}" for number in range(16)), "label"])]
    for _ in range(12_000):
        row = [draw.gauss(0, 1) for _ in range(16)]
        label = "most" if sum(value > 0 for value in row) > 8 else "few"
        lines.append(",".join([*(f"{value:.3f}" for value in row), label]))
    path = folder / "table.csv"
    path.write_text("\n".join(lines))
    return path


CNN = {"name": "cnn", "channels": [32, 64, 64]}
MLP = {"name": "mlp", "layers": 4, "width": 512}
JOBS = {
    "digits": Work({"name": "image-classification", "architecture": CNN}, digits_upload, 6, 128),
    "table": Work({"name": "tabular-classification", "architecture": MLP}, _table, 6, 256),
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
