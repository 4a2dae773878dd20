"""Where the time of a request goes, told to its caller: `Server-Timing` (W3C)."""

from contextvars import ContextVar
from time import perf_counter


class Spent:
    """Seconds by what they were spent on; since `begun`, of `time.perf_counter`."""

    def __init__(self) -> None:
        self.begun = perf_counter()
        self._parts: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        """So much more time went into that part."""
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    def header(self) -> bytes:
        """Every part and the whole until now, in milliseconds."""
        parts = [*self._parts.items(), ("total", perf_counter() - self.begun)]
        return ", ".join([f"{part};dur={1000 * spent:.3f}" for part, spent in parts]).encode()


_SPENT: ContextVar[Spent] = ContextVar("spent")


def begin() -> Spent:
    """Start counting for the request that the running asyncio task answers."""
    spent = Spent()
    _SPENT.set(spent)
    return spent


def spend(part: str, seconds: float) -> None:
    """Count time of the request at hand, if it is counted."""
    if (spent := _SPENT.get(None)) is not None:
        spent.add(part, seconds)
