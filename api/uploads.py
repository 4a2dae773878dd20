"""Where uploads lie while they are checked, and who removes them when their process was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for this process alone; those of processes that were killed are removed.

    A folder is locked for as long as its process lives, however that ends.
    """
    with _locked(parent):  # so that nobody finds a folder between its making and its locking
        for left in parent.iterdir():
            _remove_if_left(left)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = _lock(folder)
    except BlockingIOError:
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int:
    """A descriptor that keeps others out until it is closed. Raises BlockingIOError if it may not wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor
