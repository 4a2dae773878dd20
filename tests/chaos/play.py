"""One performance: references, the storm, the calm after it, a last act without Redis, the verdict."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Event

from tests.chaos import books, orders, trees, verdict, witness
from tests.chaos.books import Books
from tests.chaos.cast import Cast, cast
from tests.chaos.clients import Client
from tests.chaos.receiver import Receiver, receiver
from tests.chaos.report import Report
from tests.chaos.storm import FREEZES, WEIGHTS, Storm
from tests.chaos.users import Submission, User
from tests.conftest import opened
from tests.processes import copied

log = logging.getLogger("chaos")

USERS = 2
TRIES = 500
"""Of each request: an outage is waited out."""
TIMEOUT_SECONDS = 6.0
DRAIN_SECONDS = 300.0
LAST_JOBS, LAST_SECONDS = 3, 90.0
SEEN_SECONDS = 3.0
"""Above the time between two signs of life of a worker."""
SETTLE_SECONDS = 15.0
TELL_SECONDS = 90.0
"""Above the time after which a message is sent again whose sender died."""
LEAVE_SECONDS = 40.0


@dataclass(frozen=True)
class Script:
    """What is played."""

    seconds: float
    """Of faults."""
    seed: int
    jobs: int = 6
    """Unfinished at a time."""
    kinds: int = 100
    """Most pairs of a task and an architecture."""
    sabotage: bool = False
    """Whether runs go on when their lease is lost, which the verdict must find."""

    def draw(self, who: str) -> Random:
        """Chance for one of the parts."""
        return Random(f"{who} {self.seed}")


def play(script: Script, folder: Path) -> Report:
    """Perform in an empty folder, which other users must be able to enter."""
    report, root = Report(), copied(folder)
    trees.add_poison(root)
    if script.sabotage:
        trees.drop_the_fence(root)
    with cast(folder, root) as players, receiver() as heard:
        service, url = players.service, players.postgres.url
        with closing(Client(service.urls, service.key, TRIES, TIMEOUT_SECONDS)) as client:
            _Performance(script, players, client, heard, report).perform()
            report.tries, report.repeated = client.outcomes, client.repeated
        report.violations += _leave(players)
        with opened(url) as database:
            found = Books.of(database)
            report.violations += verdict.of_books(database, url, found)
        report.runs, report.waits = found.runs, found.waits
        report.writes = witness.writes(url)
        report.messages, report.resent = heard.messages, heard.repeated
    return report


class _Performance:
    """From the references to the judgement of every job."""

    def __init__(
        self, script: Script, players: Cast, client: Client, heard: Receiver, report: Report
    ) -> None:
        self._script, self._players, self._client = script, players, client
        self._heard, self._report = heard, report
        self._menu = orders.prepare(client, players.folder, script.draw("menu"), script.kinds)
        log.info("%d kinds of jobs have their references", len(self._menu.references))
        self._users = [
            User(name, client, self._menu, script.draw(name), players.folder, heard.url)
            for name in (f"user-{n}" for n in range(USERS))
        ]

    def perform(self) -> None:
        witness.watch(self._players.postgres.url)
        script, enough, over = self._script, Event(), Event()
        faults = FREEZES if script.sabotage else WEIGHTS
        storm = Storm(self._players, script.draw("storm"), faults)
        self._users[0].submit(self._menu.poison)  # first: it takes longest to be given up
        with ThreadPoolExecutor(USERS + 1) as pool:
            try:
                weather = pool.submit(storm.blow, script.seconds, over)
                lives = [
                    pool.submit(user.live, script.jobs // USERS, enough) for user in self._users
                ]
                storm.passed.wait()
                if weather.done():  # it ended before it was over, and says why
                    weather.result()
                enough.set()
                for life in lives:
                    life.result()
                self._wind_up()
                self._compare()
            finally:
                enough.set()
                over.set()
        weather.result()
        self._report.strikes = storm.strikes
        self._note(storm.surprises)

    def _wind_up(self) -> None:
        """Have every job end, and then a few more without any message."""
        began = time.monotonic()
        self._note(self._unended(self._submissions, DRAIN_SECONDS))
        self._report.drained = time.monotonic() - began
        self._players.redis.kill()
        last = self._script.draw("last").sample(self._menu.orders[:-1], LAST_JOBS)
        self._note(self._unended([self._users[0].submit(order) for order in last], LAST_SECONDS))

    def _compare(self) -> None:
        """Judge what has become of everything that was made."""
        menu, submissions = self._menu, self._submissions
        datasets = menu.datasets | {made for user in self._users for made in user.datasets}
        workers = len(self._players.workers)
        with opened(self._players.postgres.url) as database:
            found = Books.of(database)
            self._note(verdict.of_jobs(self._client, menu, submissions, found, self._report.ends))
            self._note(books.of_datasets(database, datasets))
            idle = lambda: books.of_workers(database, workers, SEEN_SECONDS)  # noqa: E731
            self._note(_still(idle, SETTLE_SECONDS))
        told = lambda: verdict.of_messages(self._heard, submissions, found)  # noqa: E731
        self._note(_still(told, TELL_SECONDS))
        self._note(text for text in self._client.outcomes if text.startswith("500"))

    @property
    def _submissions(self) -> list[Submission]:
        return [submission for user in self._users for submission in user.submissions]

    def _unended(self, submissions: list[Submission], seconds: float) -> Iterator[str]:
        """Jobs that do not end within so many seconds."""
        for job_id in orders.wait(self._client, [s.job_id for s in submissions], seconds):
            job = self._client.read(f"/v1/jobs/{job_id}")
            yield f"{job_id}: {job['status']} after {seconds:.0f} s of calm ({job['waiting']})"

    def _note(self, violations: Iterable[str]) -> None:
        self._report.violations += violations


def _leave(players: Cast) -> Iterator[str]:
    """Have all parts leave; what does not."""
    parts = players.service.parts.values()
    for part in parts:
        part.send(signal.SIGTERM)
    for part in parts:
        try:
            status = part.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            yield f"{part.name} did not leave within {LEAVE_SECONDS:.0f} s"
        else:
            if status not in (0, -signal.SIGTERM):
                yield f"{part.name} left with status {status}"
    for process in _still(players.left_over, LEAVE_SECONDS):
        yield f"left over: {process}"


def _still(look: Callable[[], Iterable[str]], seconds: float) -> list[str]:
    """What a look finds wrong, and still does after so many seconds."""
    until = time.monotonic() + seconds
    while (wrong := list(look())) and time.monotonic() < until:
        time.sleep(0.3)
    return wrong
