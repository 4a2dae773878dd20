"""What the names of models meant when, as far as one can know from outside."""

import math
from collections import defaultdict
from typing import NamedTuple

SHOWS_SECONDS = 2.0
"""By when a change shows everywhere: a second is promised, and look-ups wait for their turn on a busy machine."""


class _Change(NamedTuple):
    version: int | None
    """What the name means from here on; None: nothing."""
    sent: float
    done: float
    """When it was asked for, and when that was answered: in between, it may be so already."""


class Meanings:
    """The history of every name."""

    def __init__(self) -> None:
        self._changes: dict[str, list[_Change]] = defaultdict(list)

    def begin(self, ref: str, version: int | None, sent: float) -> None:
        """A change is asked for."""
        self._changes[ref].append(_Change(version, sent, math.inf))

    def end(self, ref: str, done: float) -> None:
        """The last change of the name was answered."""
        self._changes[ref][-1] = self._changes[ref][-1]._replace(done=done)

    def of(self, ref: str, begun: float, ended: float) -> set[int | None]:
        """What the name may have meant to a request in this span of time; None: nothing."""
        changes = self._changes[ref]
        if not changes:
            return {None}
        found: set[int | None] = set()
        if changes[0].done + SHOWS_SECONDS >= begun:
            found.add(None)
        for change, later in zip(changes, [*changes[1:], None], strict=True):
            over = math.inf if later is None else later.done + SHOWS_SECONDS
            if change.sent <= ended and over >= begun:
                found.add(change.version)
        return found
