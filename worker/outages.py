"""Times without a database: what counts as one, and how long it is waited out."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

Unreachable = DBAPIError
"""What a store function raises when the database is away, locked for too long, or full."""
PATIENCE_SECONDS = 900.0
"""How long a run outlives its contact to the database. Leases keep data safe, this frees the device."""
_PAUSE_SECONDS = 1.0

T = TypeVar("T")


def persist(action: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Repeat a transaction until the database takes it. Raises Unreachable after so many seconds.

    It may be done twice: the reply to its COMMIT can be what got lost.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except Unreachable as error:
            if time.monotonic() > until:
                raise
            log.warning("the database does not answer, trying again: %s", error.orig)
            time.sleep(_PAUSE_SECONDS)
