"""Checks an upload in a process of its own, bounded in memory and time: files may be hostile."""

import json
import logging
import multiprocessing
import os
import resource
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, NamedTuple

from pydantic_core import to_json

from api.errors import Busy, jsonable
from api.settings import ApiSettings
from tasks.base import DatasetOptions, Upload
from tasks.catalog import task_named
from tasks.parts.problems import Invalid, Problem

log = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("forkserver")
_WAIT_SECONDS = 10
_WAITING = 8
_ROW_GROUP_BYTES = 16 * 2**20


class Verdict(NamedTuple):
    """A data set that passed: a Parquet file per split, its number of examples, and what to know of it."""

    files: dict[str, Path]
    splits: dict[str, int]
    schema: dict[str, Any]
    report: dict[str, Any]


class Checker:
    """Runs the checks of this process, a few at a time."""

    def __init__(self, settings: ApiSettings) -> None:
        self._seconds, self._bytes = settings.check_seconds, settings.check_bytes
        self._room = BoundedSemaphore(settings.checks)
        # Whoever waits holds a thread that other requests need.
        self._hall = BoundedSemaphore(settings.checks + _WAITING)
        # Imports once what every check needs; each check then starts as a fork of that process.
        _CONTEXT.set_forkserver_preload(["__main__", __name__])
        forkserver.ensure_running()

    def check(
        self, task: str, uploads: Mapping[str, Upload], options: DatasetOptions, folder: Path
    ) -> Verdict:
        """Check uploads; the Parquet files lie in `folder`. Raises Invalid, and Busy when there is no room."""
        with _place(self._hall, 0), _place(self._room, _WAIT_SECONDS):
            return self._check(task, uploads, options, folder)

    def _check(
        self, task: str, uploads: Mapping[str, Upload], options: DatasetOptions, folder: Path
    ) -> Verdict:
        arguments = (task, dict(uploads), options, folder, self._seconds, self._bytes)
        process = _CONTEXT.Process(target=_check_in_child, args=arguments, daemon=True)
        process.start()
        process.join(self._seconds)
        found = folder / "verdict.json"
        if process.exitcode != 0 or not found.is_file():
            raise Invalid(_death(process, self._seconds, next(iter(uploads))))
        return _read(json.loads(found.read_bytes()), folder, next(iter(uploads)))


@contextmanager
def _place(room: BoundedSemaphore, seconds: float) -> Iterator[None]:
    """A place in a room for a few. Raises Busy when none gets free in time."""
    if not room.acquire(timeout=seconds):
        raise Busy("Too many data sets are being checked.", seconds=30)
    try:
        yield
    finally:
        room.release()


def _death(process: BaseProcess, seconds: int, loc: str) -> Problem:
    """Why a check did not come to an end."""
    late = process.exitcode is None
    process.kill()
    process.join()
    log.warning("a check ended with exit code %s", process.exitcode)
    if late or process.exitcode == -24:  # SIGXCPU
        return Problem((loc,), f"checking this takes longer than the {seconds} s it may take")
    return Problem((loc,), "checking this takes more memory than it may take")


def _read(verdict: dict[str, Any], folder: Path, loc: str) -> Verdict:
    if "crash" in verdict:
        log.error("a check failed:\n%s", verdict["crash"])
        raise Invalid(Problem((loc,), "this cannot be read; the log of the service says more"))
    if "problems" in verdict:
        raise Invalid(*(Problem(tuple(loc), *rest) for loc, *rest in verdict["problems"]))
    files = {split: folder / f"{split}.parquet" for split in verdict["splits"]}
    return Verdict(files, verdict["splits"], verdict["schema"], verdict["report"])


# In the child


def _check_in_child(
    task: str,
    uploads: Mapping[str, Upload],
    options: DatasetOptions,
    folder: Path,
    seconds: int,
    memory: int,
) -> None:
    _bound(seconds, memory)
    try:
        found = _check(task, uploads, options, folder)
    except Invalid as error:
        found = {"problems": jsonable(error.problems)}
    except MemoryError:
        os._exit(1)
    except Exception:
        found = {"crash": traceback.format_exc()}
    (folder / "verdict.json").write_bytes(to_json(found, inf_nan_mode="null", fallback=str))


def _check(
    task: str, uploads: Mapping[str, Upload], options: DatasetOptions, folder: Path
) -> dict[str, Any]:
    checked = task_named(task).check(uploads, options)
    for split, frame in checked.splits.items():
        # Small groups of rows, so that a few examples can be shown without reading all of them.
        rows = int(_ROW_GROUP_BYTES / max(1, frame.estimated_size() / max(1, frame.height)))
        frame.write_parquet(folder / f"{split}.parquet", row_group_size=max(1, rows))
    splits = {split: frame.height for split, frame in checked.splits.items()}
    return {"splits": splits, "schema": checked.schema, "report": checked.report}


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
