"""Users who go on whatever happens: they upload data, submit jobs, and change their minds about some."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

from cli.client import ENDED
from tests.chaos.clients import Client
from tests.chaos.orders import Menu, Order, submit, upload
from tests.chaos.trees import POISON
from tests.toys import tasks_with_toys

PAUSE_SECONDS = (0.05, 0.5)
PRIORITIES = (-1, 0, 0, 0, 0, 1, 5)
WISHES = ("cancel", "stop", "pause", "pause", "priority", "priority")


@dataclass
class Submission:
    """An order that was accepted, and what its user wanted of the job later."""

    order: Order
    key: str
    more: dict[str, Any]
    job_id: str
    wishes: set[str] = field(default_factory=set)
    """Also those whose answer never came."""


class User:
    """One who wants a few jobs to be under way at any time."""

    def __init__(
        self, name: str, client: Client, menu: Menu, draw: Random, folder: Path, webhook: str
    ) -> None:
        """The `folder` is for files to upload; at `webhook` it is heard of the jobs."""
        self.submissions: list[Submission] = []
        self.datasets: list[str] = []
        self._name, self._client, self._menu, self._draw = name, client, menu, draw
        self._webhook, self._folder = webhook, folder / name
        self._folder.mkdir()
        self._open: list[Submission] = []

    def live(self, unfinished: int, enough: Event) -> None:
        """Keep so many jobs unfinished until it is `enough`. Raises Unanswered."""
        while not enough.wait(self._draw.uniform(*PAUSE_SECONDS)):
            if len(self._open) < unfinished:
                self.submit(self._draw.choice(self._menu.orders))
            elif self._draw.random() < 0.03:
                self._upload()
            else:
                self._look_at(self._draw.choice(self._open))

    def submit(self, order: Order) -> Submission:
        key = f"{self._name}-{len(self.submissions)}"
        more = {"priority": self._draw.choice(PRIORITIES), "webhook": self._webhook}
        if order.path != "/v1/jobs":
            more = {}
        job_id = submit(self._client, order, key, **more)
        submission = Submission(order, key, more, job_id)
        self.submissions.append(submission)
        self._open.append(submission)
        return submission

    def _upload(self) -> None:
        """A data set that nobody else has."""
        task, number = self._draw.choice(tasks_with_toys()), len(self.datasets)
        key = f"{self._name}-data-{number}"
        self.datasets.append(upload(self._client, task, self._folder, key, 40 + number))

    def _look_at(self, submission: Submission) -> None:
        status = self._client.read(f"/v1/jobs/{submission.job_id}")["status"]
        if status in ENDED:
            self._open.remove(submission)
        elif status == "paused":
            if self._draw.random() < 0.5:
                self._client.call("POST", f"/v1/jobs/{submission.job_id}/resume")
        elif submission.order.name != POISON and self._draw.random() < 0.05:
            self._wish(submission, self._draw.choice(WISHES))

    def _wish(self, submission: Submission, wish: str) -> None:
        """Which may be refused: the job may have ended meanwhile, or have nothing to keep."""
        submission.wishes.add(wish)
        path = f"/v1/jobs/{submission.job_id}"
        if wish == "priority":
            self._client.call("PATCH", path, json={"priority": self._draw.choice(PRIORITIES)})
        else:
            self._client.call("POST", f"{path}/{wish}")
