"""What comes with uploads, where they lie while they are checked, and who removes them after a kill."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Form, UploadFile
from pydantic import BaseModel
from pydantic_core import from_json

from api import faults
from tasks.base import Upload
from tasks.parts.problems import Invalid, Problem

_COPY_BYTES = 2**20
ShownName = Annotated[str, Form(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""What an upload is called for people, in a form."""
Options = TypeVar("Options", bound=BaseModel)


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


def save(file: UploadFile, path: Path) -> tuple[Upload, str]:
    """The file on disk, and the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with path.open("wb") as target:
        for data in iter(lambda: file.file.read(_COPY_BYTES), b""):
            digest.update(data)
            target.write(data)
    return Upload(path, file.filename or path.name), digest.hexdigest()


def read_options(text: str, options_type: type[Options]) -> Options:
    """The JSON in the field `options` of a form. Raises Invalid."""
    try:
        value = from_json(text.strip() or "{}")
    except ValueError as error:
        raise Invalid(Problem(("options",), f"not valid JSON: {error}", text)) from None
    return faults.read(options_type, value, ("options",))


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
