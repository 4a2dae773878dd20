"""The bell by which an API on this machine wakes its worker where there is no broker."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from worker import app

log = logging.getLogger(__name__)


def answer(path: Path) -> None:
    """Have every supervisor look for a job whenever something comes through the named pipe at `path`.

    Best effort, as all wake-ups: some file systems have no pipes, and of two workers one hears it.
    """
    try:
        with suppress(FileExistsError):
            os.mkfifo(path)
        # For writing, too: a pipe that nobody else has open would read as ended.
        pipe = os.open(path, os.O_RDWR)
    except OSError as error:
        log.info("no bell at %s, looking for jobs by ourselves: %s", path, error)
        return
    while os.read(pipe, 1_024):
        app.ring()
