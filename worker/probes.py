"""What a request leaves to the device: found out before the first step, in a run of its own.

A training goes on in the same way in every run, so what was found out is written into the job's spec, and
the job goes on as that says, in a process that did not try anything.
"""

import re
import resource
import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from models.base import Batch, Learner
from models.parts.compiling import CannotCompile
from models.parts.options import LARGEST
from models.parts.training import MOST_PER_STEP, Training
from tasks.parts.columns import Columns
from tasks.parts.problems import Invalid, Problem
from worker import devices
from worker.devices import CPU
from worker.loop import epoch_batches, samples

FEWEST_PER_STEP = 2
"""Examples in the first try; batch normalisation needs as many."""
ROOM = 0.8
"""Share of the memory that batches are tried in: there are more gaps in it after many steps."""
MACHINE_SHARE = 0.5
"""Share of the machine's free memory to be had where a trainer's is not limited."""
LEAST_SECONDS = 10.0
"""Hardly a network is compiled faster, so that shorter trainings cannot gain."""
TIMED_STEPS, TIMED_SECONDS = 20, 3.0
"""Steps that are timed, fewer if they take longer than so many seconds."""


class Found(NamedTuple):
    """What was found out."""

    training: Training
    message: str


def is_needed(training: Training) -> bool:
    """Whether there is something to be found out."""
    return training.batch_size == LARGEST or training.compile == "when-it-pays"


def as_tried(training: Training) -> Training:
    """The training without what is to be found out: first the batch size, then what depends on it."""
    if training.batch_size == LARGEST:
        return training.model_copy(update={"batch_size": FEWEST_PER_STEP, "compile": "never"})
    return training.model_copy(update={"compile": "never"})


def find_batch_size(
    learner: Learner, train: Columns, asked: Training, epochs: int, device: str, processes: int
) -> Iterator[Found | None]:
    """At last the largest batch that fits the devices; until then None after each step.

    Powers of two, or all examples there are, on each device; the longest of them. Raises what says that
    memory ran out when not even the smallest fits, and Invalid when nothing is known of the memory.
    """
    most = -(-min(train.examples, MOST_PER_STEP) // processes)
    longest = torch.arange(train.examples)
    if train.lengths is not None:
        longest = train.lengths.argsort(descending=True, stable=True)
    learner.enter_epoch(epochs - 1)  # when most of it learns
    fits, size = 0, min(FEWEST_PER_STEP, most)
    with _less_memory(device, processes):
        while fits < most:
            try:
                # Epochs end with fewer examples, which leaves gaps in the memory, and then begin anew.
                for step, count in enumerate((size, size // 3 + 1, size)):
                    batch = train.batch(longest[:count]).to(device)
                    learner.train_step(batch, step).item()
                    yield None
            except (RuntimeError, MemoryError):
                # What learned from fewer examples can only have failed for their number.
                if not fits:
                    raise
                break
            fits, size = size, min(2 * size, most)
    found = min(fits * processes, train.examples, MOST_PER_STEP)
    others = f" and {processes - 1} beside it" if processes > 1 else ""
    yield Found(
        asked.model_copy(update={"batch_size": found}),
        f"The largest batch that the memory of {device}{others} takes has {found} examples.",
    )


@contextmanager
def _less_memory(device: str, processes: int) -> Iterator[None]:
    """Have memory run out before it is all used."""
    if device == CPU:
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        used = _data_bytes()
        free = devices.memory_free(CPU)
        if used is None or free is None:
            problem = "this machine does not tell how much memory is free"
            raise Invalid(Problem(("training", "batch_size"), problem, LARGEST, "a number"))
        free = int(free * MACHINE_SHARE) // processes
        if limits[1] != resource.RLIM_INFINITY:
            free = min(free, int((limits[1] - used) * ROOM))
        resource.setrlimit(resource.RLIMIT_DATA, (used + max(0, free), limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, limits)
    else:
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(ROOM * free / total, device)
        yield


def _data_bytes() -> int | None:
    """What counts towards a limit on data, where the machine tells."""
    try:
        told = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return None
    return int(told[1]) << 10 if told else None


def find_compiling(
    learner: Learner,
    train: Columns,
    asked: Training,
    steps: int,
    budget_seconds: float | None,
) -> Iterator[Found | None]:
    """At last whether compiling comes back within `steps` steps; until then None now and then."""
    device = next(learner.parameters()).device
    indices = epoch_batches(learner, train, asked, epoch=0)[:TIMED_STEPS]
    batches = [train.batch(index).to(device) for index in indices]
    learner.enter_epoch(0)
    plain = yield from _timed(learner, batches)
    whole = min(plain * steps, budget_seconds or float("inf"))
    if whole < LEAST_SECONDS:
        yield _chosen(asked, False, f"without it the training takes {whole:.1f} s")
        return
    pieces = [piece.to(device) for piece in samples(learner, train, asked)]
    learner.compile_for(pieces, ragged=train.lengths is not None)
    began = time.monotonic()
    try:
        learner.enter_epoch(0)
    except CannotCompile as error:
        yield _chosen(asked, False, str(error))
        return
    cost = time.monotonic() - began
    fast = yield from _timed(learner, batches)
    saved = whole * (1 - fast / plain)
    yield _chosen(
        asked,
        saved > cost,
        f"a step takes {fast * 1000:.3g} ms with it and {plain * 1000:.3g} ms without, which saves "
        f"{max(0.0, saved):.0f} s of {whole:.0f}; compiling takes {cost:.0f} s",
    )


def _chosen(asked: Training, pays: bool, why: str) -> Found:
    update = {"compile": "always" if pays else "never"}
    word = "compiled" if pays else "not compiled"
    return Found(asked.model_copy(update=update), f"The network is {word}: {why}.")


def _timed(learner: Learner, batches: list[Batch]) -> Generator[None, None, float]:
    """Seconds a step takes, in the median."""
    took: list[float] = []
    ends = time.monotonic() + TIMED_SECONDS
    for step in range(TIMED_STEPS):
        batch = batches[step % len(batches)]
        began = time.perf_counter()
        learner.train_step(batch, step).item()  # waits for the device
        took.append(time.perf_counter() - began)
        yield
        if time.monotonic() > ends:
            break
    return statistics.median(took)
