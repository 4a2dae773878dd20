"""What checkpoints cost a training: stretches with and without them, in turn, within the same training.

The trainer's own code on SQLite, on scikit-learn's digits and on made-up texts. A checkpoint is due every
second, thirty times as often as by default, unless its share of the time makes it wait longer.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import worker.jobs
from bench._service import in_process, submit
from cli.digits import digits, image_folder
from models.base import Learner
from store import blobs, checkpoints, jobs
from store.session import connect
from worker.checkpoints import Checkpoints, Position
from worker.devices import cores
from worker.loop import Progress, fit
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit, Inbox

EVERY_SECONDS, STRETCH_SECONDS = 1.0, 3.0
TEXTS = {
    "name": "text-classification",
    "architecture": {"name": "lstm", "width": 128, "embedding": 128},
}
DIGITS = {"name": "image-classification", "architecture": {"name": "cnn"}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=20, help="stretches with, and without")
    parser.add_argument("--share", type=float, default=0.01, help="the budget: checkpoint_share")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    result = {}
    print(f"{'job':8}{'stretches':>10}{'checkpoints':>12}{'MiB each':>10}{'budget':>8}", end="")
    print(f"{'accounted':>11}{'measured':>10}", flush=True)
    for name, task, write in (("digits", DIGITS, _digits), ("text", TEXTS, _texts)):
        with tempfile.TemporaryDirectory() as folder:
            row = _measure(Path(folder), task, write, arguments.pairs, arguments.share)
        result[name] = row
        print(
            f"{name:8}{row['stretches']:10}{row['checkpoints']:12}{row['bytes'] / 2**20:10.2f}"
            f"{arguments.share:8.2%}{row['accounted']:11.2%}{row['overhead']:10.2%}",
            flush=True,
        )
    return result


class Silent(Inbox):
    """Tells the trainer to go on until there were stretches enough."""

    def __init__(self) -> None:
        self.command: Command | None = None

    def look(self) -> Command | None:
        return self.command


class Stretches:
    """Cuts a training into stretches of whole epochs, with checkpoints and without in turn."""

    def __init__(self, pairs: int, inbox: Silent) -> None:
        self.wanted, self.inbox = 2 * pairs + 1, inbox
        self.has_checkpoints = False
        self.paces: list[float] = []
        self.seconds = 0.0
        """With checkpoints, all of them together."""
        self._began, self._epochs = time.monotonic(), 0
        self._warm = False

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
            self.paces.append(took / self._epochs)
            self.seconds += took if self.has_checkpoints else 0.0
            self.has_checkpoints = not self.has_checkpoints
        self._warm, self._began, self._epochs = True, time.monotonic(), 0
        if len(self.paces) >= self.wanted:
            self.inbox.command = "pause"

    @property
    def ratios(self) -> list[float]:
        """Each stretch with checkpoints over the mean of its neighbours without."""
        return [
            2 * self.paces[n] / (self.paces[n - 1] + self.paces[n + 1])
            for n in range(1, len(self.paces) - 1, 2)
        ]


class Switched(Checkpoints):
    """Checkpoints that stand still, and so does their clock, while there are to be none."""

    stretches: Stretches
    taken, accounted, off_since = 0, 0.0, 0.0

    @property
    def due(self) -> bool:
        if not self.stretches.has_checkpoints:
            self.off_since = self.off_since or time.monotonic()
            return False
        if self.off_since:
            self._due += time.monotonic() - self.off_since
            self.off_since = 0.0
        return super().due

    def save(self, learner: Learner, at: Position) -> None:
        Switched.taken += 1
        super().save(learner, at)

    def _write(self, at: Position, last: Any, best: Any, taken_at: float, cost: float) -> None:
        began = time.thread_time()
        super()._write(at, last, best, taken_at, cost)
        Switched.accounted += cost + time.thread_time() - began


def _measure(
    folder: Path, task: dict[str, Any], write: Callable[[Path], Path], pairs: int, share: float
) -> dict[str, Any]:
    url = f"sqlite:///{folder / 'bench.sqlite'}"
    with in_process(folder, url) as client:
        submit(client, task, write(folder), {"epochs": 100_000})
    settings = WorkerSettings(
        database_url=url,
        data_dir=folder,
        checkpoint_seconds=EVERY_SECONDS,
        checkpoint_share=share,
    )
    settings.cache_dir.mkdir(parents=True)
    database, inbox = connect(url), Silent()
    stretches = Switched.stretches = Stretches(pairs, inbox)
    Switched.taken, Switched.accounted = 0, 0.0
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
    return {
        "stretches": len(stretches.ratios),
        "checkpoints": Switched.taken,
        "bytes": size,
        "accounted": Switched.accounted / stretches.seconds,
        "overhead": statistics.median(stretches.ratios) - 1,
    }


def _digits(folder: Path) -> Path:
    train, _ = digits()
    return image_folder(folder / "digits.zip", train.images, map(str, train.digits))


def _texts(folder: Path) -> Path:
    """Short texts of 3,000 words, some of which give the label away."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(3_000)]
    lines = ["text,label"]
    for number in range(3_000):
        said = draw.choices(words, k=draw.randint(10, 40)) + draw.choices(words[: 50 + number % 2])
        lines.append(f"{' '.join(said)},{'odd' if number % 2 else 'even'}")
    path = folder / "texts.csv"
    path.write_text("\n".join(lines))
    return path
