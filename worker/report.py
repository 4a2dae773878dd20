"""What a trainer tells of a running job: learning curves, progress, and lines for people."""

import logging
import time
from types import TracebackType
from typing import Self

from store import jobs
from store.session import Database
from store.tables import Job
from tasks.base import Metrics
from worker.loop import Plan, Progress, State
from worker.outages import Unreachable

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
OUTAGE_SECONDS = 10.0
"""When to try again after the database did not answer: training should not wait for it."""


class Report:
    """Collects what happened and writes it now and then, in one transaction."""

    def __init__(self, database: Database, job: Job, step: int = 0) -> None:
        """Of a run that begins now, at `step`."""
        self._database, self._job = database, job
        self._began, self._first_step = time.monotonic(), step
        self._points: list[tuple[int, int, Metrics]] = []
        self._lines: list[tuple[str, str]] = []
        self._progress: dict[str, float | None] | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Also of a training that failed, the end is what one wants to see."""
        self.write()

    def add(self, progress: Progress) -> None:
        """Note what the loop reports. Raises Fenced."""
        self._points += progress.points
        self._progress = self._position(progress.state, progress.plan)
        if progress.state.step_in_epoch == 0:
            self._lines.append(("info", _epoch_line(progress)))
        if time.monotonic() >= self._due:
            self.write()

    def say(self, line: str, level: str = "info") -> None:
        """Add a line to the job's log."""
        self._lines.append((level, line))

    def write(self) -> bool:
        """Write what was collected, or keep it for later when the database is away; which. Raises Fenced."""
        try:
            self.write_now()
            self._due = time.monotonic() + WRITE_SECONDS
            return True
        except Unreachable as error:
            log.warning("%s goes on without the database: %s", self._job.id, error.orig)
            self._due = time.monotonic() + OUTAGE_SECONDS
            return False

    def write_now(self) -> None:
        """Write what was collected. Raises Fenced and Unreachable."""
        if not self._points and not self._lines:
            return
        with self._database.transaction() as session:
            jobs.record(
                session,
                self._job.id,
                self._job.lease_epoch,
                points=self._points,
                progress=self._progress,
                lines=self._lines,
            )
        self._points, self._lines = [], []

    def _position(self, state: State, plan: Plan) -> dict[str, float | None]:
        """Where the training stands; the time left is judged by this run alone."""
        done = state.step - self._first_step
        pace = (time.monotonic() - self._began) / done if done else None
        left = 0 if state.finished else plan.steps - state.step
        return {
            "epoch": state.epoch + (1 if state.step_in_epoch else 0),
            "epochs": plan.epochs,
            "step": state.step,
            "steps": plan.steps,
            "percent": round(100 * (1 - left / max(1, plan.steps)), 1),
            "eta_seconds": None if pace is None else round(left * pace, 1),
        }


def _epoch_line(progress: Progress) -> str:
    """Such as "epoch 3/10: train loss 0.31, validation accuracy 0.94"."""
    values = progress.points[-1][2] if progress.points else {}
    shown = ["train/epoch_loss", *(name for name in values if name.startswith("validation/"))]
    told = (
        f"{name.replace('/', ' ').replace('_', ' ')} {values[name]:.4g}"
        for name in shown
        if name in values
    )
    mark = " (best so far)" if progress.is_best else ""
    return f"epoch {progress.state.epoch}/{progress.plan.epochs}: {', '.join(told)}{mark}"
