"""Whether every job ended as it would have if nothing had happened, and what to say if not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from store.session import Database
from store.tables import Job, JobEvent
from tests.chaos import books, witness
from tests.chaos.books import Books
from tests.chaos.clients import Client
from tests.chaos.orders import Menu, Outcome, outcome_of, submit
from tests.chaos.receiver import Receiver
from tests.chaos.trees import POISON
from tests.chaos.users import Submission

_OF_POISON = {"SIGSEGV", "SIGKILL", "lost", "stalled", "poison"}
"""The signals and codes that the runs of a poisonous job may end with in a storm."""


def of_jobs(
    client: Client, menu: Menu, submissions: Sequence[Submission], found: Books, ends: Counter[str]
) -> Iterator[str]:
    """Each submission was done once and ended right; how they ended is counted in `ends`."""
    made = [submission.job_id for submission in submissions]
    strangers = set(found.jobs) - menu.jobs - set(made)
    if strangers or len(made) != len(set(made)):
        yield f"{len(made)} submissions made {len(set(made))} jobs, and {len(strangers)} nobody has"
    for submission in submissions:
        if submission.job_id not in found.jobs:
            yield f"{submission.job_id} ({submission.order.name}) was accepted, and is lost"
            continue
        again = submit(client, submission.order, submission.key, **submission.more)
        if again != submission.job_id:
            yield f"{submission.job_id}: the same request with its key now makes {again}"
        job = found.jobs[submission.job_id]
        how, wrong = judge(submission, job, found, client, menu)
        ends[f"{submission.order.name}: {how}"] += 1
        if wrong:
            wishes = ", ".join(sorted(submission.wishes)) or "nothing"
            yield f"{job.id} ({submission.order.name}; asked for {wishes}): {wrong}"


def of_messages(
    receiver: Receiver, submissions: Sequence[Submission], found: Books
) -> Iterator[str]:
    """Every status of every job was told to its webhook."""
    for submission in (s for s in submissions if "webhook" in s.more):
        statuses = {e.seq for e in found.events.get(submission.job_id, ()) if e.type == "status"}
        missing = statuses - receiver.heard[submission.job_id]
        if missing:
            yield f"{submission.job_id}: its webhook was not told of events {sorted(missing)}"


def judge(
    submission: Submission, job: Job, found: Books, client: Client, menu: Menu
) -> tuple[str, str | None]:
    """How a job ended, and what is wrong with it."""
    if submission.order.name == POISON:
        return job.status, _of_poison(job, found.events[job.id])
    outcome, reference = outcome_of(client, job.id), menu.references[submission.order.name]
    if outcome == reference:
        return "as undisturbed", None
    if outcome.status == "cancelled" and "cancel" in submission.wishes:
        return "cancelled", None
    if outcome.status == "succeeded" and "stop" in submission.wishes:
        early = _begins(reference.curves, outcome.curves)
        return "stopped", None if early else difference(outcome, reference)
    if outcome.status == "failed" and _worn_out(job, found.events[job.id]):
        return "worn out", None
    return "wrong", difference(outcome, reference)


def of_books(database: Database, url: str, found: Books) -> Iterator[str]:
    """What the rows say, of each job and of all together."""
    with database.transaction(read_only=True) as session:
        for job_id, job in found.jobs.items():
            yield from books.of_events(job, found.events[job_id])
            yield from books.of_rows(session, job)
        yield from books.of_models(session)
    yield from books.of_bytes(database)
    yield from witness.stale_writes(url)


def difference(outcome: Outcome, reference: Outcome) -> str:
    """Where two outcomes first differ."""
    ours, theirs = outcome._asdict(), reference._asdict()
    name = next(name for name in ours if ours[name] != theirs[name])
    if name == "curves":
        return _of_curves(outcome.curves, reference.curves)
    return f"{name} {ours[name]!r} instead of {theirs[name]!r}"


def _of_curves(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    if set(ours) != set(theirs):
        return f"curves {sorted(ours)} instead of {sorted(theirs)}"
    for name in ours:
        for place, (a, b) in enumerate(
            zip(_points(ours[name]), _points(theirs[name]), strict=False)
        ):
            if a != b:
                return f"curve {name}, point {place}: {a} instead of {b}"
        if ours[name] != theirs[name]:
            lengths = len(ours[name]["steps"]), len(theirs[name]["steps"])
            return f"curve {name}: {lengths[0]} points instead of {lengths[1]}"
    return "curves"


def _points(curve: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(curve["steps"], curve["epochs"], curve["values"], strict=True))


def _begins(whole: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether all curves of a stopped training are the beginnings of those of a whole one."""
    return set(part) <= set(whole) and all(
        _points(whole[name])[: len(curve["steps"])] == _points(curve)
        for name, curve in part.items()
    )


def _worn_out(job: Job, events: Sequence[JobEvent]) -> bool:
    """Whether it was given up as promised: too many runs in a row that got it no further."""
    claims = [event.seq for event in events if "attempt" in event.data]
    if (job.error or {}).get("code") != "poison" or len(claims) < job.max_attempts:
        return False
    steps = [(event.seq, event.data["step"]) for event in events if event.type == "checkpoint"]
    # A run that got further and was ended afterwards is the first of those that count.
    furthest = max((step for seq, step in steps if seq < claims[1 - job.max_attempts]), default=-1)
    return all(step <= furthest for _, step in steps)


def _of_poison(job: Job, events: Sequence[JobEvent]) -> str | None:
    """It fails after its attempts, for what was seen: what it does to itself, or what was done to it."""
    if job.status != "failed" or not _worn_out(job, events):
        return f"{job.status} after attempt {job.attempt}: {job.error}"
    reasons = [event.data["reason"] for event in events if "reason" in event.data]
    seen = {reason.get("signal", reason["code"]) for reason in [*reasons, job.error or {}]}
    return None if seen <= _OF_POISON else f"ended by {sorted(seen)}"
