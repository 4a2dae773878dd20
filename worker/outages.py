"""Times without a database or without room on the disk: what counts as one, and how long it is waited out."""

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

log = logging.getLogger(__name__)

Unreachable = (OperationalError, InterfaceError, InternalError)
"""What a store function raises when the database is away, locked for too long, or full."""
PATIENCE_SECONDS = 900.0
"""How long a run outlives its contact to the database. Leases keep data safe, this frees the device."""
_PAUSE_SECONDS = 1.0
_NO_ROOM = re.compile(r"no space left on device|disk quota exceeded", re.I)

T = TypeVar("T")


def persist(action: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Repeat a write until there is a database and room for it. Raises what it met after so many seconds.

    It may be done twice: the reply to a COMMIT can be what got lost.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except Exception as error:
            if not (isinstance(error, Unreachable) or disk_is_full(error)):
                raise
            if time.monotonic() > until:
                raise
            log.warning("a write did not go through, trying again: %s", error)
            time.sleep(_PAUSE_SECONDS)


def disk_is_full(error: BaseException) -> bool:
    """Whether this machine's disk had no room, said by the system or by a library that lost the number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, Unreachable) and bool(_NO_ROOM.search(str(error)))
