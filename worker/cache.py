"""This machine's cache of what trainers can fetch or make again: files that are whole or not there."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LEFT_OVER_SECONDS = 86_400
_LOOK_SECONDS = 0.2


class Cache:
    """Files by name in a folder, shared by all trainers of a machine; the least lately used ones go."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder)
        self._folder, self._limit = folder, limit_bytes
        self._in_use: dict[str, int] = {}
        """Descriptors that hold locks, which end with this process at the latest."""

    def close(self) -> None:
        """Give up what is in use."""
        while self._in_use:
            os.close(self._in_use.popitem()[1])

    def get(
        self,
        name: str,
        make: Callable[[Path], object],
        waiting: Callable[[], object] = lambda: None,
    ) -> Path:
        """The file `name`, written by `make(path)` if it is not there; stays until `close`.

        While another trainer makes it, this one waits for that, and calls `waiting` now and then.
        """
        path = self._folder / name
        while not self._lock(path):
            with _alone_in(self._folder / f".new-{name}", waiting) as folder:
                if not path.exists():  # nor made by the trainer that was waited for
                    _write(folder / name, make).replace(path)
        os.utime(path)
        self._evict()
        return path

    def _lock(self, path: Path) -> bool:
        """Keep the file from being evicted; False when it is not there."""
        if path.name in self._in_use:
            return True
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_nlink == 0:  # evicted between the two
            os.close(file)
            return False
        self._in_use[path.name] = file
        return True

    def _evict(self) -> None:
        files = [(p.stat(), p) for p in self._folder.iterdir() if not p.name.startswith(".")]
        over = sum(stat.st_size for stat, _ in files) - self._limit
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if over <= 0:
                return
            if _removed(path):
                over -= stat.st_size


@contextmanager
def _alone_in(folder: Path, waiting: Callable[[], object]) -> Iterator[Path]:
    """A folder that is made for one trainer at a time; the next one comes when it is done, or dead."""
    while (lock := _enter(folder, waiting)) is None:
        pass
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _enter(folder: Path, waiting: Callable[[], object]) -> int | None:
    """A descriptor that locks the folder; None when the folder that was waited for is gone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError), ExitStack() as leaving:
        lock = os.open(folder, os.O_RDONLY)
        leaving.callback(os.close, lock)
        while not _locked(lock):
            waiting()
            time.sleep(_LOOK_SECONDS)
        if os.path.samestat(os.fstat(lock), folder.stat()):
            leaving.pop_all()
            return lock
    return None


def _locked(file: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _write(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def _remove_left_over(folder: Path) -> None:
    """Remove what trainers were writing when they were killed, here, in `checkpoints` and `profiles`."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _removed(path: Path) -> bool:
    """Remove a file unless a trainer uses it."""
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False
