"""Whatever is learned, and wherever it is killed: it ends with the same bits as if left alone.

Every task, and every architecture in one of them. `--kills 7` kills each of them seven times.
"""

import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import pytest

from store import events, metrics
from store.session import Database
from store.tables import Job
from tests.toys import toy
from tests.worker.mortal import PLACES, Death, run
from tests.worker.shop import Shop
from tests.worker.trainings import every_task_and_architecture

TRAINING = {"epochs": 3, "batch_size": 16}
ALWAYS = {"checkpoint_seconds": 0.0, "checkpoint_share": 1.0}


class Tally:
    """What the kills of a whole run came to."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.alone = self.killed = 0.0

    def __str__(self) -> str:
        places = ", ".join(f"{number} in {place}" for place, number in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({places}); trainings left alone took {self.alone:.1f} s, "
            f"killed ones {self.killed:.1f} s with all of their starts"
        )


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    found = Tally()
    yield found
    print(f"\n{found}")  # noqa: T201


@pytest.fixture
def busy_shop(sqlite_database: Database, sqlite_url: str, tmp_path: Any) -> Shop:
    """A shop whose trainers are always writing a checkpoint."""
    shop = Shop(sqlite_database, sqlite_url, tmp_path)
    shop.settings = shop.settings.model_copy(update=ALWAYS)
    return shop


class Learned(NamedTuple):
    """All that must not depend on how often a training was killed."""

    best: str
    last: str
    memory: str | None
    state: dict[str, Any]
    metrics: dict[str, Any]
    curves: dict[str, Any]


def learned(shop: Shop, job: Job) -> Learned:
    row, best, last = shop.job(job), shop.best(job), shop.last(job)
    assert row.status == "succeeded", row.error
    state = {key: value for key, value in last.state.items() if key != "seconds"}
    curves = shop.act(metrics.curve, job.id)
    return Learned(
        best.weights_blob, last.weights_blob, last.state_blob, state, row.metrics, curves
    )


def death(draw: Random, steps: int) -> Death:
    """Any moment of a training of so many steps."""
    place = draw.choice(sorted(PLACES))
    once = ("first look", "start-up", "end")
    most = {"between steps": steps, "judging": TRAINING["epochs"], **dict.fromkeys(once, 1)}
    nth = draw.randint(1, most.get(place, max(1, steps // 4)))
    return Death(place, nth, draw.choice([0.0, draw.uniform(0, 0.01), draw.uniform(0, 0.2)]))


@pytest.mark.parametrize(("task", "architecture"), list(every_task_and_architecture()))
def test_a_training_killed_anywhere_ends_with_the_same_bits(
    task: str, architecture: str, busy_shop: Shop, seed: int, kills: int, tally: Tally
) -> None:
    draw = Random(f"{seed} {task} {architecture}")
    dataset = busy_shop.store(task, toy(task, busy_shop.folder, 60))
    submit = lambda: busy_shop.submit(  # noqa: E731
        dataset, {"name": architecture}, TRAINING, max_attempts=1_000
    )
    alone, began = submit(), time.monotonic()
    assert not run(busy_shop, alone)
    tally.alone += time.monotonic() - began
    expected, steps = learned(busy_shop, alone), int(busy_shop.last(alone).step)

    job, began = submit(), time.monotonic()
    left = kills
    while left or busy_shop.job(job).status == "queued":
        if busy_shop.job(job).status != "queued":
            job = (
                submit()
            )  # the one before got to its end: what is left to be killed is another one
        fate = death(draw, steps) if left else None
        if run(busy_shop, job, fate) and fate is not None:
            left -= 1
            tally.kills[fate.place] += 1
    tally.killed += time.monotonic() - began
    assert learned(busy_shop, job) == expected
    ends = [e for e in busy_shop.act(events.page, job.id, 0, 10_000).rows if "model" in e.data]
    assert len(ends) == 1
