"""Families: the service's loop and its answers beside a bare loop over the same network, for every kind of data.

`--data DIR` holds the data sets of `bench quality`. Each is checked and encoded as a job would have it, and a
network is built as the service chooses. The limit is that network in a loop written by hand, as in `bench training`:
batches cut out of tensors in memory, loss, backward pass, step of the same fused optimizer. The service's own loop
cuts its batches out of mapped columns. Answers are those of a batch prediction, beside forward passes over the same
batches whose outputs are decoded. Both in turns, in a process for each data set; a share is the limit's time over the
service's in the same round, the median over the rounds.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import nn

from bench.quality import Case, found
from models.base import Batch, Learner
from models.parts.training import Training
from tasks.base import Facts, Upload
from tasks.catalog import Spec, read_task, resolve, task_named
from tasks.parts.columns import Columns
from tasks.trained import Trained
from worker.encoded import load_columns, save_columns
from worker.loop import Split, epoch_batches, fit, plan_of
from worker.trainer import keep_memory

STEPS, ASKED = 40, 64
"""Steps of an epoch and examples that are answered, where the data has so many."""
FEW = 2
"""Examples to judge by, after the clock has stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", help="names of data sets")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    print(f"{'data':17}{'task':28}{'architecture':22}{'steps/s':>9}{'training':>10}{'answers':>9}")
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as made:
        for case, files in found(arguments.data, Path(made)):
            if arguments.only and case.name not in arguments.only:
                continue
            row = {"data": case.name, "task": case.task, **_apart(case, files, arguments)}
            rows.append(row)
            print(
                f"{row['data']:17}{row['task']:28}{row['architecture']:22}{row['steps_per_second']:9.1f}"
                f"{row['training']:10.3f}{row['answers']:9.3f}",
                flush=True,
            )
    return {"rows": rows, "threads": arguments.threads, "rounds": arguments.rounds}


def _apart(case: Case, files: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """The measures of one data set, by a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    given = (case, files, arguments.rounds, arguments.threads, there)
    process = context.Process(target=_measure, args=given)
    process.start()
    there.close()
    try:
        told: dict[str, Any] = json.loads(here.recv())
    finally:
        process.join()
    return told


def _measure(
    case: Case, files: dict[str, Path], rounds: int, threads: int, answer: Connection
) -> None:
    torch.set_num_threads(threads)
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
        course = _begun(case, files, rounds, Path(folder))
        steps, training = _training(course, rounds)
        told = {
            "architecture": course.spec.task.architecture.name,
            "steps_per_second": steps,
            "training": training,
            "answers": _answers(course, rounds),
        }
    answer.send(json.dumps(told))


class _Course(NamedTuple):
    spec: Spec
    trained: Trained
    train: Split
    few: Split
    asked: Split


def _begun(case: Case, files: Mapping[str, Path], rounds: int, folder: Path) -> _Course:
    """A data set as a job has it after its first steps: checked, resolved, encoded and mapped into memory."""
    kind = task_named(case.task)
    uploads = {name: Upload(path, path.name) for name, path in files.items()}
    checked = kind.check(uploads, kind.options_type.model_validate(case.options))
    facts = Facts(checked.schema, {name: len(frame) for name, frame in checked.splits.items()})
    asked = read_task({"name": case.task, **case.fields})
    spec = resolve(asked.name, facts, asked, Training(), None)
    longer = spec.training.model_copy(update={"epochs": rounds + 1, "early_stopping": None})
    spec = spec.model_copy(update={"training": longer})
    whole = checked.splits["train"]
    codec = spec.task.learn_codec(whole.lazy(), checked.schema)

    def split(name: str, examples: pl.DataFrame) -> Split:
        save_columns([codec.encode(examples)], folder / name)
        return Split(load_columns(folder / name), examples)

    torch.manual_seed(0)
    return _Course(
        spec,
        Trained(spec.task, codec, spec.task.build(codec)),
        split("train", whole.head(STEPS * spec.training.batch_size)),
        split("few", whole.head(FEW)),
        split("asked", checked.splits["validation"].head(ASKED)),
    )


def _training(course: _Course, rounds: int) -> tuple[float, float]:
    """Steps per second of the limit, and the share of it that the service's own loop comes to."""
    spec, trained, columns = course.spec, course.trained, course.train.columns
    learner, bare = trained.learner, spec.task.build(trained.codec)
    for each in (learner, bare):
        each.start(spec.training, None, plan_of(each, columns, spec.training).steps)
    ended = [0.0]
    learner.train_step = _noting(learner.train_step, ended)  # type: ignore[method-assign]
    epochs = fit(trained, course.train, course.few, spec.training, interval=1e9)
    took: list[tuple[float, float]] = []
    held, steps = _in_memory(columns), 0
    for epoch in range(rounds + 1):
        index = epoch_batches(bare, columns, spec.training, epoch)
        steps = len(index)
        began = time.perf_counter()
        next(epochs)
        service = ended[0] - began
        bare.enter_epoch(epoch)
        began = time.perf_counter()
        _bare_epoch(bare, spec.training, map(held.batch, index))
        took.append((time.perf_counter() - began, service))
    told = took[1:]
    limit = statistics.median(limit for limit, _ in told)
    return steps / limit, statistics.median(limit / service for limit, service in told)


def _noting(train_step: Callable[..., Any], ended: list[float]) -> Callable[..., Any]:
    """The same, and when it ended: what comes after the last step of an epoch is not training."""

    def step(*given: Any) -> Any:
        loss = train_step(*given)
        ended[0] = time.perf_counter()
        return loss

    return step


def _bare_epoch(learner: Learner, training: Training, batches: Iterable[Batch]) -> None:
    """A loop by hand; networks that do not follow one gradient take their own steps."""
    if type(learner).train_step is not Learner.train_step:
        for step, batch in enumerate(batches):
            learner.train_step(batch, step)
        return
    optimizer = learner.optimizers["main"]
    for batch in batches:
        learner.loss(batch).backward()
        if training.clipping.norm is not None:
            nn.utils.clip_grad_norm_(learner.parameters(), training.clipping.norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _in_memory(columns: Columns) -> Columns:
    """The same columns, not mapped."""
    return columns.select(torch.arange(columns.examples))


def _answers(course: _Course, rounds: int) -> float:
    """The share of bare forward passes that answers of the service come to."""
    trained, columns = course.trained, course.asked.columns
    trained.learner.eval()
    held = _in_memory(columns)
    # As the service puts them together, so that as little is padded.
    together = [index for index, _ in trained.outputs(columns)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in map(held.batch, together):
                trained.codec.decode(trained.learner.predict(*batch.inputs).float())

    shares = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        bare()
        between = time.perf_counter()
        trained.predictions(columns)
        shares.append((between - began) / (time.perf_counter() - between))
    return statistics.median(shares[1:])
