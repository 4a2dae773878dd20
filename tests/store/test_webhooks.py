"""The outbox of webhooks: what is written when, who may send it, and what signs it."""

import base64
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import events, jobs, webhooks
from store.errors import Conflict, NotFound
from store.session import Database
from store.tables import Delivery, Job, WebhookSecret
from tests.store.world import Clock, World

URL = "https://hooks.example.com/jobs"
EVERY = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]


def hook(url: str = URL, *statuses: str) -> dict[str, Any]:
    return {"url": url, "events": list(statuses) or EVERY}


def outbox(world: World, job: Job | None = None) -> list[Delivery]:
    """Every message, those of a job in the order of its events."""
    with world.database.transaction() as session:
        query = select(Delivery).order_by(Delivery.id)
        return [row for row in session.scalars(query) if job is None or row.job_id == job.id]


def due(world: World, *busy: str) -> list[str]:
    return [id for id, _ in world.act(webhooks.due, busy)]


def claim(world: World, *delivery_ids: str) -> list[Delivery]:
    """Take these messages, or all that are due."""
    return list(world.act(webhooks.claim, delivery_ids or due(world)))


def end(world: World, message: Delivery, error: str | None = None, **more: Any) -> Delivery:
    """Write how the attempt of this claim ended, and see what became of the message."""
    status = 200 if error is None else 500
    outcome = {"status": status, "error": error, **more}
    world.act(webhooks.record, message.id, message.claims, **outcome)
    return next(row for row in outbox(world) if row.id == message.id)


@pytest.fixture
def clock(database: Database, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(database, monkeypatch)


# What is written


def test_every_status_of_a_job_reaches_the_outbox_as_it_was_shown(world: World) -> None:
    job = world.start(webhook=hook())
    world.user(jobs.pause, job)
    world.user(jobs.resume, job)
    world.user(jobs.pause, job)
    world.holder(jobs.release, job, charge=False)
    world.user(jobs.resume, job)
    job = world.claim() or job
    world.save(job)
    world.user(jobs.stop, job)
    world.user(jobs.cancel, job)
    world.holder(jobs.finish, job, "cancelled")
    told = world.act(events.page, job.id, 0, 100).rows
    statuses = [(event.seq, event.data["status"]) for event in told if event.type == "status"]
    messages = outbox(world, job)
    assert [(row.seq, row.type.removeprefix("job.")) for row in messages] == statuses
    assert [status for _, status in statuses] == [
        *("queued", "running", "pausing", "running", "pausing", "paused", "queued"),
        *("running", "running", "cancelling", "cancelled"),
    ]
    assert {row.created_at for row in messages} == {e.at for e in told if e.type == "status"}
    assert {(row.status, row.attempts, row.url) for row in messages} == {("pending", 0, URL)}


def test_a_message_says_which_job_and_how_it_ended(world: World) -> None:
    job = world.start(webhook=hook(), name="mine")
    world.save(job)
    metrics = {"test": {"accuracy": 0.75}}
    world.holder(jobs.finish, job, "succeeded", metrics=metrics)
    first, _, last = outbox(world, job)
    facts = {
        "id": job.id,
        "name": "mine",
        "kind": "train",
        "task": "text-classification",
        "dataset": world.dataset,
    }
    assert first.data == {**facts, "status": "queued", "seq": 1}
    assert last.data == {
        **facts,
        "status": "succeeded",
        "model": "mine@1",
        "seq": last.seq,
        "metrics": metrics,
    }


def test_a_failure_is_told_without_its_traceback(world: World) -> None:
    job = world.start(webhook=hook(URL, "failed"))
    error = {"code": "diverged", "message": "The loss became infinite.", "traceback": "..."}
    world.holder(jobs.finish, job, "failed", error=error)
    (message,) = outbox(world, job)
    assert message.data["error"] == {"code": "diverged", "message": "The loss became infinite."}


def test_only_what_was_asked_for_is_told(world: World) -> None:
    some, none = world.start(webhook=hook(URL, "failed", "succeeded")), world.submit()
    world.save(some)
    world.holder(jobs.finish, some, "succeeded")
    assert [row.type for row in outbox(world, some)] == ["job.succeeded"]
    assert outbox(world, none) == []


def test_what_did_not_happen_is_not_told(world: World) -> None:
    job = world.submit(webhook=hook())

    def cancel_and_stumble(session: Session) -> None:
        jobs.cancel(session, world.project, job.id)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        world.act(cancel_and_stumble)
    assert [row.type for row in outbox(world, job)] == ["job.queued"]


def test_the_messages_of_a_job_go_with_it(world: World) -> None:
    job, other = world.submit(webhook=hook()), world.submit(webhook=hook())
    world.user(jobs.cancel, job)
    world.user(jobs.delete, job)
    assert {row.job_id for row in outbox(world)} == {other.id}


# Who sends it


def test_a_claimed_message_is_nobody_elses(world: World, clock: Clock) -> None:
    world.submit(webhook=hook())
    (first,) = due(world)
    (message,) = claim(world, first)
    assert (message.attempts, message.status) == (1, "pending")
    assert claim(world, first) == []
    assert due(world) == []
    delivered = end(world, message)
    assert (delivered.status, delivered.last_status) == ("delivered", 200)
    assert delivered.delivered_at == clock.now
    clock.move(1_000_000)
    assert due(world) == []


def test_many_senders_send_every_message_once(world: World) -> None:
    for _ in range(40):
        world.submit(webhook=hook())
    taken: Counter[str] = Counter()
    ready = threading.Barrier(4)

    def send() -> None:
        ready.wait()
        while found := due(world):
            taken.update(message.id for message in claim(world, *found[:3]))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(taken.values()) == {1}
    assert len(taken) == 40


def test_a_message_whose_sender_died_is_sent_again(world: World, clock: Clock) -> None:
    world.submit(webhook=hook())
    (lost,) = claim(world)
    clock.move(webhooks.LEASE.total_seconds() - 1)
    assert due(world) == []
    clock.move(1)
    (again,) = claim(world)
    assert (again.id, again.attempts) == (lost.id, 2)
    late = end(world, lost)
    assert late.status == "pending", "who was taken for dead writes nothing"
    assert end(world, again).status == "delivered"
    assert end(world, again, "no").status == "delivered", "a delivery is final"


def test_the_messages_of_a_job_come_in_order(world: World) -> None:
    first, second = world.start(webhook=hook()), world.submit(webhook=hook())
    world.user(jobs.cancel, first)
    world.user(jobs.cancel, second)
    sent: dict[str, list[int]] = {first.id: [], second.id: []}
    while found := claim(world):
        assert len({message.job_id for message in found}) == len(found), "one at a time"
        for message in found:
            sent[message.job_id].append(message.seq)
            end(world, message)
    assert sent == {first.id: [1, 2, 3], second.id: [1, 2]}


def test_a_message_that_fails_holds_up_the_later_ones_for_a_short_while(
    world: World, clock: Clock
) -> None:
    job = world.submit(webhook=hook())
    world.user(jobs.cancel, job)
    first, second = outbox(world, job)
    end(world, claim(world)[0], "no")
    assert due(world) == [], "the next attempt is near, and may keep the order"
    clock.move(6)
    end(world, claim(world, first.id)[0], "no")
    assert due(world) == [second.id]
    assert end(world, claim(world)[0]).status == "delivered"
    clock.move(400)
    assert due(world) == [first.id]


def test_receivers_that_are_busy_get_nothing_more(world: World) -> None:
    receivers = ["https://a.example.com/", "https://a.example.com:8443/", "https://a_example.com/"]
    ids = [
        outbox(world, world.submit(webhook=hook(f"{receiver}jobs")))[0].id for receiver in receivers
    ]
    assert due(world) == ids
    for place, receiver in enumerate(receivers):
        assert due(world, receiver) == ids[:place] + ids[place + 1 :]
    assert due(world, *receivers) == []


def test_what_has_been_due_longest_is_sent_first(world: World, clock: Clock) -> None:
    first = outbox(world, world.submit(webhook=hook()))[0].id
    end(world, claim(world)[0], "no")
    clock.move(1)
    second = outbox(world, world.submit(webhook=hook()))[0].id
    clock.move(10)
    assert due(world) == [second, first]


# When it is sent again


def test_a_failed_attempt_is_repeated_on_the_schedule_of_standard_webhooks(
    world: World, clock: Clock
) -> None:
    world.submit(webhook=hook())
    schedule = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
    for attempt, seconds in enumerate(schedule, 1):
        message = end(world, claim(world)[0], f"no, {attempt} times")
        assert (message.status, message.attempts) == ("pending", attempt)
        assert message.last_error == f"no, {attempt} times"
        assert message.next_attempt_at is not None
        wait = message.next_attempt_at - clock.now
        assert seconds * 0.9 <= wait.total_seconds() <= seconds * 1.1
        clock.set(message.next_attempt_at)
    given_up = end(world, claim(world)[0], "no")
    assert (given_up.status, given_up.attempts, given_up.next_attempt_at) == ("failed", 10, None)
    clock.move(10_000_000)
    assert due(world) == []


def test_attempts_that_failed_together_do_not_come_back_together() -> None:
    assert len({webhooks.backoff(3) for _ in range(10)}) == 10


def test_a_receiver_may_ask_for_more_time_but_not_for_less(world: World, clock: Clock) -> None:
    world.submit(webhook=hook())
    message = end(world, claim(world)[0], "busy", wait=60.0)
    assert message.next_attempt_at == clock.now + timedelta(seconds=60)
    clock.move(60)
    message = end(world, claim(world)[0], "busy", wait=60.0)
    assert message.next_attempt_at is not None
    assert message.next_attempt_at - clock.now > timedelta(seconds=200)


def test_a_receiver_that_wants_no_more_gets_no_more(world: World) -> None:
    world.submit(webhook=hook())
    message = end(world, claim(world)[0], "gone", again=False)
    assert (message.status, message.last_error, message.last_status) == ("failed", "gone", 500)


def test_an_ended_message_can_be_sent_again_with_all_its_attempts(
    world: World, clock: Clock
) -> None:
    world.submit(webhook=hook())
    first = claim(world)[0]
    with pytest.raises(Conflict, match="pending"):
        world.act(webhooks.retry, world.project, first.id)
    end(world, first, "gone", again=False)
    assert world.act(webhooks.retry, world.project, first.id).attempts == 0
    second = claim(world)[0]
    assert end(world, first).status == "pending", "an attempt of before writes nothing"
    assert end(world, second).status == "delivered"
    again = world.act(webhooks.retry, world.project, first.id)
    assert (again.status, again.delivered_at, again.next_attempt_at) == ("pending", None, clock.now)
    assert due(world) == [first.id]


# What is shown and kept


def test_messages_are_listed_by_job_and_status_and_only_to_their_project(world: World) -> None:
    first, second = world.submit(webhook=hook()), world.submit(webhook=hook())
    end(world, claim(world, outbox(world, first)[0].id)[0])
    page = world.act(webhooks.page, world.project).rows
    assert [row.job_id for row in page] == [second.id, first.id]
    assert world.act(webhooks.page, world.project, 1).next == page[0].id
    assert world.act(webhooks.page, world.project, 1, page[0].id).rows[0].id == page[1].id
    for narrowed in ({"job": first.id}, {"status": "delivered"}):
        rows = world.act(webhooks.page, world.project, **narrowed).rows
        assert [row.job_id for row in rows] == [first.id]
    assert world.act(webhooks.page, world.other_project).rows == []
    for project, id in ((world.other_project, page[1].id), (world.project, "msg_x")):
        with pytest.raises(NotFound):
            world.act(webhooks.retry, project, id)


def test_old_messages_are_forgotten_unless_they_are_pending(world: World, clock: Clock) -> None:
    for _ in range(3):
        world.submit(webhook=hook())
    delivered, failed, pending = claim(world)
    end(world, delivered)
    end(world, failed, "gone", again=False)
    clock.move(29 * 86_400)
    world.act(webhooks.sweep)
    assert len(outbox(world)) == 3
    clock.move(2 * 86_400)
    world.act(webhooks.sweep)
    assert [row.id for row in outbox(world)] == [pending.id]


# Secrets


def count_secrets(world: World) -> int:
    with world.database.transaction() as session:
        return session.execute(select(func.count()).select_from(WebhookSecret)).scalar_one()


def test_a_secret_is_made_once_for_each_project(world: World) -> None:
    first = world.act(webhooks.secret, world.project).secret
    assert first.startswith("whsec_")
    assert len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) == 32
    assert world.act(webhooks.secret, world.project).secret == first
    assert world.act(webhooks.signing, world.project) == [first]
    assert world.act(webhooks.secret, world.other_project).secret != first


def test_a_new_secret_signs_beside_the_old_one_for_a_day(world: World, clock: Clock) -> None:
    old = world.act(webhooks.secret, world.project).secret
    new = world.act(webhooks.rotate, world.project).secret
    assert world.act(webhooks.secret, world.project).secret == new != old
    clock.move(86_399)
    assert world.act(webhooks.signing, world.project) == [new, old]
    world.act(webhooks.sweep)
    clock.move(2)
    assert world.act(webhooks.signing, world.project) == [new]
    assert count_secrets(world) == 2
    world.act(webhooks.sweep)
    assert count_secrets(world) == 1


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("function", [webhooks.secret, webhooks.rotate])
def test_there_is_one_present_secret_however_many_ask_at_once(
    world: World, function: Callable[..., WebhookSecret], is_there: bool
) -> None:
    before = {world.act(webhooks.secret, world.project).secret} if is_there else set()
    ready, found = threading.Barrier(4), list[str]()

    def ask() -> None:
        ready.wait()
        found.append(world.act(function, world.project).secret)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert world.act(webhooks.secret, world.project).secret in found
    assert set(world.act(webhooks.signing, world.project)) == before | set(found)
