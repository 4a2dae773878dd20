"""A trainer that the kernel kills in the middle of what it does, and the worker that looks after its job."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from threading import Timer
from typing import Any, NamedTuple
from unittest.mock import patch

import worker.checkpoints
import worker.desk
import worker.jobs
import worker.loop
import worker.predictions
from store import jobs
from store.errors import Fenced
from store.tables import Job
from tests.worker.shop import Shop
from worker import trainer
from worker.loop import fit
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Exit

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(["worker.warm"])

PLACES: dict[str, tuple[Any, str]] = {
    "first look": (worker.jobs, "sit_down"),
    "start-up": (worker.jobs, "prepare"),
    "between steps": (worker.loop, "seed_step"),
    "checkpoint write": (worker.checkpoints, "save_weights"),
    "checkpoint upload": (worker.checkpoints.blobs, "put"),
    "checkpoint publication": (worker.checkpoints.checkpoints, "publish"),
    "report": (worker.checkpoints.curves, "add"),
    "judging": (worker.loop, "judge"),
    "end": (worker.jobs, "publish"),
}
"""What a trainer may be in the middle of: the function that it then has called."""
OF_BATCHES: dict[str, tuple[Any, str]] = {
    "reading": (worker.predictions, "answering"),
    "part upload": (worker.predictions.blobs, "put"),
    "part publication": (worker.predictions.artifacts, "add_part"),
    "putting together": (worker.predictions, "publish"),
    "batch end": (worker.predictions.jobs, "finish"),
}
"""The same of one that predicts."""


class Death(NamedTuple):
    """When a trainer dies: so many seconds after it does something for the so manieth time."""

    place: str
    nth: int
    seconds: float


def live(
    assignment: Assignment, settings: WorkerSettings, commands: Connection, death: Death | None
) -> None:
    """Be a trainer until death. It reports after every step, so that there is something to lose at each."""
    worker.jobs.fit = partial(fit, interval=0.0)  # type: ignore[assignment]
    if death is None:
        trainer.main(assignment, settings, commands)
        return
    owner, name = (PLACES | OF_BATCHES)[death.place]
    with patch.object(owner, name, _fatal(getattr(owner, name), death)):
        trainer.main(assignment, settings, commands)


def _fatal(function: Callable[..., Any], death: Death) -> Callable[..., Any]:
    calls = count(1)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == death.nth:
            kill = partial(os.kill, os.getpid(), signal.SIGKILL)
            if death.seconds == 0.0:
                kill()
            Timer(death.seconds, kill).start()
        return function(*arguments, **options)

    return wrapped


def run(shop: Shop, job: Job, death: Death | None = None) -> bool:
    """One run of a queued job as a worker would have it; whether it was killed."""
    claimed = shop.claimed(job)
    theirs, ours = Pipe()
    assignment = Assignment(job.id, claimed.lease_epoch, "cpu", 1)
    process = _FORKED.Process(target=live, args=(assignment, shop.settings, theirs, death))
    process.start()
    theirs.close()
    process.join()
    ours.close()
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == Exit.DONE, process.exitcode
    # A trainer that dies after its last write has ended its job.
    with suppress(Fenced):
        shop.act(jobs.release, job.id, claimed.lease_epoch, charge=killed)
    return killed
