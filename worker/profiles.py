"""Where the time of a few steps goes: recorded when the job asks for it, and kept as artifacts of the job."""

import gzip
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from models.base import Batch, Learner
from store import artifacts, blobs, events, jobs
from store.errors import Fenced
from worker.desk import Desk
from worker.loop import Plan, State
from worker.outages import Unreachable, persist
from worker.report import Report

log = logging.getLogger(__name__)

TRACE, TABLE = "profile.trace.json.gz", "profile.json"
MEDIA_TYPES = {TRACE: "application/gzip", TABLE: "application/json"}
_STEPS = "ProfilerStep*"
"""What the profiler calls all marked steps together."""
WARM_UP = 2
"""Steps before the first recorded one in which the profiler is there already: its start takes time, too."""
LARGEST_BYTES = 64 << 20
"""Of a trace, packed; unpacked it has more than ten times as many, and no viewer opens larger ones."""
OPERATORS = 40
"""How many the table names."""


class Window(NamedTuple):
    """What a job wants to have recorded; the first step of a training is 1."""

    from_step: int
    steps: int
    memory: bool
    shapes: bool


def profiled(
    desk: Desk, report: Report, learner: Learner, state: State, plan: Plan
) -> AbstractContextManager[object]:
    """Around a run that goes on from this state: the steps that its job asks for are recorded.

    This is begun once in a job's life, so that a profile which takes too much memory costs one run at most.
    """
    if desk.job.profile is None:
        return nullcontext()
    window = Window(**desk.job.profile)
    with desk.database.transaction(read_only=True) as session:
        begun = events.happened(session, desk.job.id, "profile")
        kept = artifacts.page(session, desk.job.id).rows
    if begun:
        obstacle = None if kept else "it was lost with a run before this one"
    elif window.from_step > plan.steps:
        obstacle = f"it was to begin at step {window.from_step}, and there are {plan.steps}"
    elif window.from_step <= state.step:
        obstacle = f"it was to begin at step {window.from_step}, and {state.step} are done already"
    else:
        return Recording(desk, report, learner, window, state.step)
    if obstacle is not None:
        report.say(f"no profile: {obstacle}", "warning")
    return nullcontext()


class Recording:
    """Stands in for the learner's `train_step` until the last step of the window is done.

    So the loop knows nothing of it, and a training without a profile pays nothing for it. A profiler that
    fails costs the profile alone.
    """

    def __init__(
        self, desk: Desk, report: Report, learner: Learner, window: Window, done: int
    ) -> None:
        self._desk, self._report, self._learner, self._window = desk, report, learner, window
        self._train_step = learner.train_step
        self._course = self._record(done)
        self._thread = ThreadPoolExecutor(1, "profile")
        self._keeping: Future[None] | None = None

    def __enter__(self) -> Self:
        self._learner.train_step = self._step  # type: ignore[method-assign]
        self._advance(self._course.__next__)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """A run that was told to end keeps what it has recorded. Raises Fenced and Unreachable."""
        if error is None:
            self._advance(self._course.close)
        else:
            # The error comes back, or what the profiler made of it: neither is news.
            with suppress(type(error), Exception):
                self._course.throw(error)
        self._stand_back()
        self._thread.shutdown()
        if self._keeping is not None and error is None:
            self._keeping.result()

    def _step(self, batch: Batch, step: int) -> Tensor:
        """The learner's own step, marked as profilers do, and what is to be done after it."""
        with record_function(f"ProfilerStep#{step + 1}"):
            loss = self._train_step(batch, step)
        self._advance(self._course.__next__)
        return loss

    def _advance(self, course: Callable[[], object]) -> None:
        try:
            course()
        except StopIteration:
            self._stand_back()
        except Fenced:
            raise
        except Exception as error:
            log.warning("%s is not profiled", self._desk.job.id, exc_info=error)
            self._report.say(f"no profile: the profiler failed: {error}", "warning")
            self._stand_back()

    def _stand_back(self) -> None:
        """Let the learner have its own step again."""
        vars(self._learner).pop("train_step", None)

    def _record(self, done: int) -> Generator[None, None, None]:
        """From the beginning of the run to the end of the window; goes on after each step."""
        before, recorded = self._window.from_step - 1, 0
        warm = max(done, before - WARM_UP)
        profiler = profile(
            activities=_activities(self._desk.device),
            profile_memory=self._window.memory,
            record_shapes=self._window.shapes,
        )
        try:
            for _ in range(done, warm):
                yield
            if not self._begun():
                return
            profiler.prepare_trace()
            try:
                for _ in range(warm, before):
                    yield
                profiler.start_trace()
                while recorded < self._window.steps:
                    yield
                    recorded += 1
            finally:
                profiler.stop_trace()
        except GeneratorExit:  # the run was told to end
            pass
        if recorded:
            self._keeping = self._thread.submit(self._keep, profiler, recorded)
        else:
            self._report.say(f"no profile: this run ends before step {before + 1}, the first of it")

    def _begun(self) -> bool:
        """Write that it begins, and whether that worked: no step waits for the database because of it."""
        told = {"from_step": self._window.from_step, "steps": self._window.steps}
        job = self._desk.job
        try:
            with self._desk.database.transaction() as session:
                jobs.note(session, job.id, job.lease_epoch, "profile", told)
        except Unreachable as error:
            log.warning("%s is not profiled: %s", job.id, error.orig)
            self._report.say("no profile: the database was away when it was to begin", "warning")
            return False
        return True

    def _keep(self, profiler: profile, recorded: int) -> None:
        """Make artifacts of what was recorded, while the training goes on. Raises Fenced and Unreachable."""
        folder, prefix = self._desk.settings.cache_dir, f".profile-{self._desk.job.id}-"
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as name:
                files, lines = self._write(profiler, recorded, Path(name))
                persist(lambda: self._publish(files, lines))
        except (Fenced, *Unreachable):
            raise
        except Exception as error:
            log.warning("the profile of %s was lost", self._desk.job.id, exc_info=error)
            line = f"no profile: it could not be kept: {error}"
            persist(lambda: self._publish([], [("warning", line)]))

    def _write(
        self, profiler: profile, recorded: int, folder: Path
    ) -> tuple[list[Path], list[tuple[str, str]]]:
        """The files to keep, and what to say of them in the job's log."""
        told, first = table(profiler, self._desk.device), self._window.from_step
        about = {
            "device": self._desk.device,
            "torch": torch.__version__,
            "from_step": first,
            "steps": recorded,
        }
        (folder / TABLE).write_text(json.dumps(about | told, indent=1))
        packed = trace(profiler, folder)
        most = told["operators"][0]["name"]
        lines = [("info", f"profiled steps {first} to {first + recorded - 1}: most time in {most}")]
        size = packed.stat().st_size
        if size <= LARGEST_BYTES:
            return [folder / TABLE, packed], lines
        larger = f"the trace is not kept: it has {size} bytes, and {LARGEST_BYTES} are allowed"
        return [folder / TABLE], [*lines, ("warning", f"{larger}; profile fewer steps")]

    def _publish(self, files: list[Path], lines: list[tuple[str, str]]) -> None:
        """Upload what is large, then make all of it visible at once."""
        database, job = self._desk.database, self._desk.job
        stored = {path.name: blobs.put(database, path) for path in files}
        with database.transaction() as session:
            artifacts.add_all(session, job.id, job.lease_epoch, stored, MEDIA_TYPES)
            jobs.record(session, job.id, job.lease_epoch, lines=lines)


def trace(profiler: profile, folder: Path) -> Path:
    """What viewers such as Perfetto read, gzipped."""
    plain, packed = folder / "trace.json", folder / TRACE
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return packed


def table(profiler: profile, device: str) -> dict[str, Any]:
    """{step_ms, operators, left_out}: what took most time by itself, on the device that does the work.

    Times and bytes are sums over the window and without those of what an operator called; a share is one
    of all such times. What runs in a step and in no operator, which is Python, counts as one.
    """
    rows = [row for row in profiler.key_averages() if row.device_type == DeviceType.CPU]
    kinds = {"cpu": "self_cpu_time_total"}
    if device != "cpu":
        kinds = {"device": "self_device_time_total", **kinds}
    totals = {kind: sum(getattr(row, of) for row in rows) or 1 for kind, of in kinds.items()}
    rows.sort(key=lambda row: [getattr(row, of) for of in kinds.values()], reverse=True)

    def shown(row: Any) -> dict[str, Any]:
        name = "outside of operators" if row.key == _STEPS else row.key
        found: dict[str, Any] = {"name": name, "calls": row.count}
        for kind, of in kinds.items():
            found[f"{kind}_ms"] = round(getattr(row, of) / 1000, 3)
            found[f"{kind}_share"] = round(getattr(row, of) / totals[kind], 4)
        if profiler.profile_memory:
            found["cpu_bytes"] = row.self_cpu_memory_usage
            if device != "cpu":
                found["device_bytes"] = row.self_device_memory_usage
        return found

    (steps,) = (row for row in rows if row.key == _STEPS)
    return {
        "step_ms": round(steps.cpu_time_total / steps.count / 1000, 3),
        "operators": [shown(row) for row in rows[:OPERATORS]],
        "left_out": len(rows[OPERATORS:]),
    }


def _activities(device: str) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
