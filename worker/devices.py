"""The devices of this machine, known without loading torch."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import pynvml

CPU = "cpu"
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


class Device(NamedTuple):
    """A place for one trainer."""

    name: str
    """As torch calls it: "cpu", "cuda:0"."""
    model: str
    memory_bytes: int


class Pool:
    """Devices of a worker process that one job can have together, and which job has each of them now.

    Whoever claims a job takes as many as it needs, and lends its own to the job of another meanwhile.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.size = len(names)
        self.claiming = Lock()
        """Held from counting what is free until it is taken."""
        self._names = tuple(names)
        self._jobs: list[str | None] = [None] * self.size
        self._bells: list[Event] = []

    def join(self, bell: Event) -> int:
        """The place of the next device's supervisor; its `bell` rings when devices change hands."""
        self._bells.append(bell)
        return len(self._bells) - 1

    def job(self, place: int) -> str | None:
        """The job that has the device at `place`."""
        return self._jobs[place]

    def free(self) -> int:
        """How many devices nobody uses."""
        return self._jobs.count(None)

    def take(self, place: int, number: int, job_id: str) -> tuple[str, ...]:
        """Give the device at `place` and so many more in all to a job; their names."""
        idle = [other for other in range(self.size) if self._jobs[other] is None and other != place]
        taken = [place, *idle[: number - 1]]
        for each in taken:
            self._jobs[each] = job_id
        self._ring()
        return tuple(self._names[each] for each in taken)

    def give_back(self, job_id: str) -> None:
        """A job has ended that had some of them."""
        self._jobs = [None if job == job_id else job for job in self._jobs]
        self._ring()

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()


def find(asked: str, slots: int) -> list[Device]:
    """One device for each job that can run at a time: the CPU as often as it has slots, or GPUs.

    Raises LookupError for a GPU that is not there.
    """
    names = asked.split(",") if asked != "auto" else _gpus() or [CPU]
    return [_device(name) for name in names for _ in range(slots if name == CPU else 1)]


def memory_free(name: str) -> int | None:
    """Bytes of a device that nobody uses, where the machine tells; on the CPU, those of its container."""
    try:
        if name != CPU:
            with _gpu(name) as handle:
                return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        available = _number(_MEMORY, "MemAvailable:") << 10
    except (pynvml.NVMLError, OSError, StopIteration):
        return None
    left = _left_in_container()
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """What a control group (version 2) may still use; files that it only read go when they have to."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        return max(0, limit - used + _number(_GROUP / "memory.stat", "inactive_file"))
    except (OSError, ValueError, StopIteration):  # there is none, or its limit is "max"
        return None


def _number(table: Path, name: str) -> int:
    """The number beside a name in a table. Raises OSError and StopIteration."""
    lines = table.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def cores() -> int:
    """Processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _device(name: str) -> Device:
    if name == CPU:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(CPU, platform.processor() or platform.machine(), memory)
    try:
        with _gpu(name) as handle:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            return Device(name, pynvml.nvmlDeviceGetName(handle), int(memory))
    except (pynvml.NVMLError, IndexError) as error:
        raise LookupError(f"there is no device {name}: {error}") from error


def _gpus() -> list[str]:
    try:
        with _nvml():
            visible = _visible()
            count = pynvml.nvmlDeviceGetCount() if visible is None else len(visible)
    except pynvml.NVMLError:
        return []
    return [f"cuda:{place}" for place in range(count)]


def _visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, by number or UUID; None: all."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else [name for name in names.split(",") if name not in ("", "-1")]


@contextmanager
def _gpu(name: str) -> Iterator[Any]:
    """NVML's handle of the GPU that torch calls `name`; NVML knows nothing of CUDA_VISIBLE_DEVICES."""
    place, visible = int(name.removeprefix("cuda:")), _visible()
    number = str(place) if visible is None else visible[place]
    with _nvml():
        if number.isdigit():
            yield pynvml.nvmlDeviceGetHandleByIndex(int(number))
        else:
            yield pynvml.nvmlDeviceGetHandleByUUID(number)


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()
