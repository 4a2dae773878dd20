"""This machine's cache of what trainers can fetch or make again: files that are whole or not there."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tasks.parts.columns import Columns, Dense, Ragged

_LEFT_OVER_SECONDS = 86_400
_COLUMNS: Mapping[str, type[Dense] | type[Ragged]] = {"Dense": Dense, "Ragged": Ragged}


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

    def get(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file `name`, written by `make(path)` if it is not there; stays until `close`."""
        path = self._folder / name
        while not self._lock(path):
            self._write(path, make)
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

    def _write(self, path: Path, make: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".new-") as folder:
            new = Path(folder) / path.name
            make(new)
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.replace(path)

    def _evict(self) -> None:
        files = [(p.stat(), p) for p in self._folder.iterdir() if not p.name.startswith(".")]
        over = sum(stat.st_size for stat, _ in files) - self._limit
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if over <= 0:
                return
            if _removed(path):
                over -= stat.st_size


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


def columns_name(blob_id: str, task: str, codec: str) -> str:
    """The file name of a split's columns: a function of its bytes and of all that encoded them."""
    key = sha256("\0".join((blob_id, task, codec)).encode()).hexdigest()
    return f"{key}.columns.safetensors"


def save_columns(columns: Columns, path: Path) -> None:
    """Write columns so that `load_columns` maps them into memory instead of reading them."""
    tensors, kinds = {}, {}
    for role in ("inputs", "targets"):
        for place, column in enumerate(getattr(columns, role)):
            kinds[f"{role}.{place}"] = type(column).__name__
            for name, tensor in column.tensors().items():
                tensors[f"{role}.{place}.{name}"] = tensor.contiguous().clone()
    save_file(tensors, path, metadata=kinds)


def load_columns(path: Path) -> Columns:
    """Columns whose bytes stay in the file until they are looked at."""
    with safe_open(path, framework="pt") as file:
        kinds = file.metadata()
    tensors = load_file(path)

    def column(place: str) -> Dense | Ragged:
        prefix = f"{place}."
        fields = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        return _COLUMNS[kinds[place]](**fields)

    def role(name: str) -> tuple[Dense | Ragged, ...]:
        places = sorted((k for k in kinds if k.startswith(f"{name}.")), key=_number)
        return tuple(column(place) for place in places)

    return Columns(role("inputs"), role("targets"))


def _number(place: str) -> int:
    return int(place.rpartition(".")[2])
