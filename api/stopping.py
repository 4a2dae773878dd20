"""Whether this process was told to end: asked by what could hold it up."""

import time


class Stopping:
    """Not true before it has begun."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def begin(self) -> None:
        """The process is to end; repeating it changes nothing. A signal handler may call it."""
        if self._begun is None:
            self._begun = time.monotonic()

    def __bool__(self) -> bool:
        return self.lasts(0)

    def lasts(self, seconds: float) -> bool:
        """Whether it began so long ago."""
        return self._begun is not None and time.monotonic() - self._begun >= seconds
