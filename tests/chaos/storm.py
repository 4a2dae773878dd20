"""Strikes one after another at moments drawn from a seed; whatever died is started again after a while."""

import heapq
import itertools
import logging
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from random import Random
from threading import Event

from tests.chaos import injuries, outages
from tests.chaos.cast import Cast, Fault, Nobody
from tests.processes import Part

log = logging.getLogger("chaos")

WEIGHTS: dict[Fault, int] = {
    injuries.kill_a_worker: 5,
    injuries.lose_the_host_of_a_worker: 4,
    injuries.tell_a_worker_to_stop: 6,
    injuries.kill_a_trainer: 10,
    injuries.kill_what_trainers_are_forked_from: 4,
    injuries.freeze_a_worker: 9,
    injuries.freeze_a_supervisor: 4,
    injuries.freeze_a_trainer: 4,
    injuries.kill_an_api: 5,
    injuries.tell_an_api_to_stop: 4,
    injuries.freeze_an_api: 5,
    injuries.kill_the_reconciler: 4,
    outages.flush_redis: 5,
    outages.kill_redis: 4,
    outages.flood_redis: 4,
    outages.crash_postgres: 3,
    outages.kill_postgres: 3,
    outages.cut_every_connection: 5,
}
"""How often each strikes."""
FREEZES: dict[Fault, int] = {injuries.freeze_a_worker: 1, injuries.freeze_a_supervisor: 2}
"""What leaves trainers behind that have lost their lease."""
PAUSE_SECONDS = (0.5, 5.0)
"""Between two strikes."""
RESTART_SECONDS = (0.2, 2.5)
"""What an init system takes."""
TICK_SECONDS = 0.05


class Storm:
    """Everything that happens to a cast, and everything that is put right again."""

    def __init__(self, cast: Cast, draw: Random, faults: Mapping[Fault, int]) -> None:
        """Each of `faults` strikes as often as it weighs."""
        self.strikes: Counter[str] = Counter()
        self.surprises: list[str] = []
        """Processes that ended though nobody had hurt them, or otherwise than they should."""
        self.passed = Event()
        """Set when the last fault was and everything is on its way back."""
        self._cast, self._draw, self._faults = cast, draw, faults
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._returning: set[str] = set()
        self._outage = -math.inf
        """When the database was last seen to be away."""

    def blow(self, seconds: float, over: Event) -> None:
        """Strike for so long, then have everything come back, and stay so until it is `over`."""
        try:
            self._rage(seconds)
            while self._agenda:
                self._do_next()
        finally:
            self.passed.set()
        while not over.wait(TICK_SECONDS):
            self._tend()

    def _rage(self, seconds: float) -> None:
        end, strike_at = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if time.monotonic() >= strike_at:
                self._strike()
                strike_at = time.monotonic() + self._draw.uniform(*PAUSE_SECONDS)
            self._tend()
            time.sleep(TICK_SECONDS)

    def _tend(self) -> None:
        """Do what is due, and have started again what died."""
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            self._do_next()
        if not self._cast.postgres.alive:
            self._outage = time.monotonic()
        for part in self._cast.service.parts.values():
            if not part.alive and part.name not in self._returning:
                self._look_at_the_dead(part)
                self._returning.add(part.name)
                self._later(self._draw.uniform(*RESTART_SECONDS), partial(self._revive, part))

    def _strike(self) -> None:
        (fault,) = self._draw.choices(list(self._faults), list(self._faults.values()))
        with suppress(Nobody):
            hurt = fault(self._cast, self._draw)
            name = fault.__name__.replace("_", " ")
            self.strikes[name] += 1
            log.info("%s: %s", name, hurt.who)
            for seconds, action in hurt.later:
                self._later(seconds, action)

    def _do_next(self) -> None:
        _, _, action = heapq.heappop(self._agenda)
        action()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), action))

    def _revive(self, part: Part) -> None:
        self._returning.discard(part.name)
        part.start()

    def _look_at_the_dead(self, part: Part) -> None:
        status = part.wait(0)
        # Without its database an API does not start: whoever starts it does so again.
        without_database = part in self._cast.apis and self._outage > part.started
        if not part.sent and not without_database:
            self.surprises.append(f"{part.name} ended by itself with status {status}")
        elif part.sent == {signal.SIGTERM} and status not in (0, -signal.SIGTERM):
            self.surprises.append(f"{part.name} was told to stop and ended with status {status}")
