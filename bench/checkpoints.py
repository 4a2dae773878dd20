"""What a checkpoint costs a training: stretches with one every second, and without, in turn, within one training.

The trainer's own code on SQLite, on scikit-learn's digits and on made-up texts. `accounted` is what the
trainer reckons a checkpoint costs, by which it keeps to its budget; `measured` is the time that the epochs
of a stretch really took longer than in its neighbours. The last columns are what the defaults make of it.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import worker.jobs
from bench._service import digits_upload, in_process, submit
from models.base import Learner
from store import blobs, checkpoints, jobs
from store.session import connect
from worker.checkpoints import Checkpoints, Position
from worker.devices import cores
from worker.loop import Progress, fit
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit, Inbox

EVERY_SECONDS, STRETCH_SECONDS = 1.0, 3.0
TEXTS = {"name": "text-classification", "architecture": {"name": "lstm"}}
DIGITS = {"name": "image-classification", "architecture": {"name": "cnn"}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=20, help="stretches with, and without")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    result = {}
    print(f"{'job':8}{'checkpoints':>12}{'MiB each':>10}{'accounted':>12}{'measured':>11}", end="")
    print(f"{'by default every':>18}{'overhead':>10}", flush=True)
    for name, task, write in (("digits", DIGITS, digits_upload), ("text", TEXTS, _texts)):
        with tempfile.TemporaryDirectory() as folder:
            row = result[name] = _measure(Path(folder), task, write, arguments.pairs)
        print(
            f"{name:8}{row['checkpoints']:12}{row['bytes'] / 2**20:10.2f}"
            f"{row['accounted'] * 1e3:9.1f} ms{row['measured'] * 1e3:8.1f} ms"
            f"{row['interval']:16.1f} s{row['overhead']:10.2%}",
            flush=True,
        )
    return result


class Silent(Inbox):
    """Tells the trainer to go on until there were stretches enough."""

    def __init__(self) -> None:
        self.command: Command | None = None

    def look(self) -> Command | None:
        return self.command


class Stretch(NamedTuple):
    """Some whole epochs of a training."""

    seconds: float
    epochs: int
    checkpoints: int

    @property
    def pace(self) -> float:
        return self.seconds / self.epochs


class Stretches:
    """Cuts a training into stretches with checkpoints and without in turn."""

    def __init__(self, pairs: int, inbox: Silent) -> None:
        self.wanted, self.inbox = 2 * pairs + 1, inbox
        self.has_checkpoints = False
        self.checkpoints = 0
        """In this stretch so far."""
        self.done: list[Stretch] = []
        self._began, self._epochs, self._warm = time.monotonic(), 0, False

    def cut(self, reports: Iterator[Progress]) -> Iterator[Progress]:
        for report in reports:
            if report.state.step_in_epoch == 0:
                self._end_of_epoch()
            yield report

    def _end_of_epoch(self) -> None:
        self._epochs += 1
        took = time.monotonic() - self._began
        if took < STRETCH_SECONDS:
            return
        if self._warm:
            self.done.append(Stretch(took, self._epochs, self.checkpoints))
            self.has_checkpoints = not self.has_checkpoints
        self._warm, self._began, self._epochs, self.checkpoints = True, time.monotonic(), 0, 0
        if len(self.done) >= self.wanted:
            self.inbox.command = "pause"

    @property
    def measured(self) -> float:
        """Seconds a checkpoint cost: the median over the stretches, each beside its neighbours without."""
        return statistics.median(
            (with_.pace - (before.pace + after.pace) / 2) * with_.epochs / with_.checkpoints
            for before, with_, after in zip(
                self.done[::2], self.done[1::2], self.done[2::2], strict=False
            )
            if with_.checkpoints
        )


class Switched(Checkpoints):
    """Checkpoints in every other stretch."""

    stretches: Stretches
    costs: ClassVar[list[float]] = []
    """Seconds, as reckoned by the trainer."""

    @property
    def due(self) -> bool:
        return self.stretches.has_checkpoints and super().due

    def save(self, learner: Learner, at: Position) -> None:
        self.stretches.checkpoints += 1
        super().save(learner, at)

    def _write(self, at: Position, last: Any, best: Any, taken_at: float, cost: float) -> None:
        began = time.thread_time()
        super()._write(at, last, best, taken_at, cost)
        self.costs.append(cost + time.thread_time() - began)


def _measure(
    folder: Path, task: dict[str, Any], write: Callable[[Path], Path], pairs: int
) -> dict[str, Any]:
    url = f"sqlite:///{folder / 'bench.sqlite'}"
    with in_process(folder, url) as client:
        submit(client, task, write(folder), {"epochs": 100_000})
    defaults = WorkerSettings(database_url=url, data_dir=folder)
    defaults.cache_dir.mkdir(parents=True)
    often = {"checkpoint_seconds": EVERY_SECONDS, "checkpoint_share": 1.0}
    settings = defaults.model_copy(update=often)
    database, inbox = connect(url), Silent()
    stretches = Switched.stretches = Stretches(pairs, inbox)
    Switched.costs.clear()
    with database.transaction() as session:
        held = jobs.claim(session, "bench", ["cpu"], 86_400, "bench")
        assert held is not None

    def in_stretches(*given: Any, **options: Any) -> Iterator[Progress]:
        return stretches.cut(fit(*given, **options))

    with (
        patch.object(worker.jobs, "fit", in_stretches),
        patch.object(worker.jobs, "Checkpoints", Switched),
    ):
        left = worker.jobs.run(
            Assignment(held.id, held.lease_epoch, "cpu", cores()), settings, inbox
        )
    assert left is Exit.DONE
    with database.transaction(read_only=True) as session:
        last = checkpoints.last(session, held.id)
        assert last is not None
        names = (last.weights_blob, last.codec_blob, last.state_blob or last.codec_blob)
        size = sum(blobs.size(session, name) for name in names)
    database.dispose()
    accounted, measured = statistics.median(Switched.costs), stretches.measured
    interval = max(defaults.checkpoint_seconds, accounted / defaults.checkpoint_share)
    return {
        "checkpoints": len(Switched.costs),
        "bytes": size,
        "accounted": accounted,
        "measured": measured,
        "interval": interval,
        "overhead": measured / interval,
    }


def _texts(folder: Path) -> Path:
    """Short texts of 3,000 words, some of which give the label away."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(3_000)]
    lines = ["text,label"]
    for number in range(1_500):
        said = draw.choices(words, k=draw.randint(10, 40)) + draw.choices(words[: 50 + number % 2])
        lines.append(f"{' '.join(said)},{'odd' if number % 2 else 'even'}")
    path = folder / "texts.csv"
    path.write_text("\n".join(lines))
    return path
