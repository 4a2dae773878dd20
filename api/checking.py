"""Checks an upload in a process of its own, bounded in memory and time: files may be hostile."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import BoundedSemaphore, Thread
from typing import Any, NamedTuple

import polars as pl
import torch
from pydantic_core import to_json

from api.errors import Busy, Stopped, StorageFull, is_full, jsonable
from api.settings import ApiSettings
from api.stopping import Stopping
from tasks.base import DatasetOptions, Upload, read_each
from tasks.catalog import task_named
from tasks.parts import packages
from tasks.parts.hub_archives import Unpacked, unpack
from tasks.parts.inputs import read_inputs
from tasks.parts.packages import CODEC, WEIGHTS, About, Packed
from tasks.parts.problems import Invalid, Problem

log = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("forkserver")
_WAIT_SECONDS = 10
_WAITING = 8
_LOOK_SECONDS = 0.2
_LAST_SECONDS = 5
"""How long a check may go on once the service is to end: most take less."""
_ROW_GROUP_BYTES = 16 * 2**20
_INPUTS = "inputs.parquet"
_Work = Callable[..., dict[str, Any]]


class Verdict(NamedTuple):
    """A data set that passed: a Parquet file per split, its number of examples, and what to know of it."""

    files: dict[str, Path]
    splits: dict[str, int]
    schema: dict[str, Any]
    report: dict[str, Any]


class Checker:
    """Runs the checks of this process, a few at a time."""

    def __init__(self, settings: ApiSettings, stopping: Stopping) -> None:
        self._seconds, self._bytes = settings.check_seconds, settings.check_bytes
        self._stopping = stopping
        self._room = BoundedSemaphore(settings.checks)
        # Whoever waits holds a thread that other requests need.
        self._hall = BoundedSemaphore(settings.checks + _WAITING)
        # Imports once what every check needs; each check then starts as a fork of that process.
        _CONTEXT.set_forkserver_preload(["__main__", __name__])
        forkserver.ensure_running()

    def check(
        self, task: str, uploads: Mapping[str, Upload], options: DatasetOptions, folder: Path
    ) -> Verdict:
        """Check uploads; the Parquet files lie in `folder`.

        Raises Invalid, StorageFull, Stopped, and Busy when too many are being checked.
        """
        found = self._run(_check, (task, dict(uploads), options), folder, next(iter(uploads)))
        files = {split: folder / f"{split}.parquet" for split in found["splits"]}
        return Verdict(files, found["splits"], found["schema"], found["report"])

    def read(self, task: str, upload: Upload, folder: Path) -> Path:
        """Inputs for a model of that task, as Parquet in the columns of `tasks.parts.inputs`.

        Raises like `check`.
        """
        self._run(_read, (task, upload), folder, "file")
        return folder / _INPUTS

    def unpack(self, upload: Upload, folder: Path) -> Unpacked:
        """A zipped checkpoint in the Hub's layout; its files lie in `folder`. Raises like `check`."""
        return Unpacked(**self._run(_unpack, (upload,), folder, "file"))

    def unpack_model(self, upload: Upload, folder: Path) -> Packed:
        """A model that an export has packed; codec and weights lie in `folder`. Raises like `check`."""
        found = self._run(_unpack_model, (upload,), folder, "file")
        return Packed(About.model_validate(found["about"]), folder / CODEC, folder / WEIGHTS)

    def _run(
        self, work: _Work, arguments: tuple[Any, ...], folder: Path, loc: str
    ) -> dict[str, Any]:
        """What `work` finds; its files lie in `folder`."""
        with _place(self._hall, 0), _place(self._room, _WAIT_SECONDS):
            return self._run_in_child(work, arguments, folder, loc)

    def _run_in_child(
        self, work: _Work, arguments: tuple[Any, ...], folder: Path, loc: str
    ) -> dict[str, Any]:
        limits = (self._seconds, self._bytes)
        process = _CONTEXT.Process(
            target=_in_child, args=(work, arguments, folder, *limits), daemon=True
        )
        process.start()
        self._wait(process)
        status = process.exitcode
        process.kill()
        process.join()
        found = folder / "verdict.json"
        if status == 0 and found.is_file():
            return _verdict(json.loads(found.read_bytes()), loc)
        log.warning("a check ended with exit code %s", status)
        if status == errno.ENOSPC:
            raise StorageFull("No room for the check of a data set.")
        if self._stopping:
            raise Stopped
        raise Invalid(_death(status, self._seconds, loc))

    def _wait(self, process: BaseProcess) -> None:
        """Until the check has ended, or has to."""
        deadline = time.monotonic() + self._seconds
        while process.is_alive() and time.monotonic() < deadline:
            if self._stopping.lasts(_LAST_SECONDS):
                return
            process.join(_LOOK_SECONDS)


@contextmanager
def _place(room: BoundedSemaphore, seconds: float) -> Iterator[None]:
    """A place in a room for a few. Raises Busy when none gets free in time."""
    if not room.acquire(timeout=seconds):
        raise Busy("Too many data sets are being checked.", seconds=30)
    try:
        yield
    finally:
        room.release()


def _death(status: int | None, seconds: int, loc: str) -> Problem:
    """Why a check did not come to an end; without an exit status it was still at it."""
    if status in (None, -signal.SIGXCPU):
        return Problem((loc,), f"checking this takes longer than the {seconds} s it may take")
    return Problem((loc,), "checking this takes more memory than it may take")


def _verdict(verdict: dict[str, Any], loc: str) -> dict[str, Any]:
    """What a check found. Raises Invalid."""
    if "crash" in verdict:
        log.error("a check failed:\n%s", verdict["crash"])
        raise Invalid(Problem((loc,), "this cannot be read; the log of the service says more"))
    if "problems" in verdict:
        raise Invalid(*(Problem(tuple(loc), *rest) for loc, *rest in verdict["problems"]))
    return verdict


# In the child


def _in_child(
    work: _Work, arguments: tuple[Any, ...], folder: Path, seconds: int, memory: int
) -> None:
    _end_with_service()
    _bound(seconds, memory)
    try:
        found = work(*arguments, folder)
    except Invalid as error:
        found = {"problems": jsonable(error.problems)}
    except MemoryError:
        os._exit(1)
    except Exception as error:
        _exit_if_full(error)
        found = {"crash": traceback.format_exc()}
    try:
        (folder / "verdict.json").write_bytes(to_json(found, inf_nan_mode="null", fallback=str))
    except OSError as error:
        _exit_if_full(error)
        raise


def _check(
    task: str, uploads: Mapping[str, Upload], options: DatasetOptions, folder: Path
) -> dict[str, Any]:
    checked = task_named(task).check(uploads, options)
    for split, frame in checked.splits.items():
        _write(frame, folder / f"{split}.parquet")
    splits = {split: frame.height for split, frame in checked.splits.items()}
    return {"splits": splits, "schema": checked.schema, "report": checked.report}


def _read(task: str, upload: Upload, folder: Path) -> dict[str, Any]:
    input_type = task_named(task).input_type
    read = read_each({"file": upload}, lambda upload: read_inputs(upload, input_type))
    _write(read["file"], folder / _INPUTS)
    return {}


def _unpack(upload: Upload, folder: Path) -> dict[str, Any]:
    found = read_each({"file": upload}, lambda upload: unpack(upload.path, folder))
    return found["file"]._asdict()


def _unpack_model(upload: Upload, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)  # of a process that was forked, others would wait for ever
    found = read_each({"file": upload}, lambda upload: packages.unpack(upload.path, folder))
    return {"about": found["file"].about.model_dump(mode="json")}


def _write(frame: pl.DataFrame, path: Path) -> None:
    """As Parquet with small groups of rows, so that a few can be had without reading all of them."""
    rows = int(_ROW_GROUP_BYTES / max(1, frame.estimated_size() / max(1, frame.height)))
    frame.write_parquet(path, row_group_size=max(1, rows))


def _end_with_service() -> None:
    """Die when the service does, however that ends, and not by the Ctrl-C that is meant for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = multiprocessing.parent_process()
    assert service is not None

    def follow() -> None:
        service.join()
        os._exit(1)

    # The kernel's own way does not serve: this was forked from a process that outlives the service.
    Thread(target=follow, daemon=True).start()


def _exit_if_full(error: Exception) -> None:
    """End with a status that says that there is no room, if that is what went wrong."""
    # Polars tells of a failed write in words alone.
    if is_full(error) or f"(os error {errno.ENOSPC})" in str(error):
        os._exit(errno.ENOSPC)


def _bound(seconds: int, memory: int) -> None:
    """Limits on this process: memory above what it has by now, time, and no core dumps."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
