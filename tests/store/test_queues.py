"""What waits in the queues, why, and whose device it takes."""

from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from store import jobs, queues, workers
from store.session import Database
from store.tables import Job
from tests.store.world import World


def serve(world: World, worker: str = "w", *served: str, **facts: Any) -> None:
    """A sign of life of a worker, which takes jobs from `cpu` unless others are named."""
    usual = {"host": "h", "pid": 1, "device": "cpu", "device_name": "CPU", "memory_bytes": 1}
    given = {**usual, "queues": list(served or ["cpu"]), "slots": 1, "status": "idle", **facts}
    world.act(workers.beat, worker, **given)


def run(world: World, worker: str = "w", **options: Any) -> Job:
    """A new job that runs on a worker."""
    job = world.submit(**options)
    with world.database.transaction() as session:
        served = [options.get("queue", "cpu")]
        claimed = jobs.claim(session, f"{worker}/{job.id}", served, 60.0, worker)
    assert claimed is not None
    assert claimed.id == job.id
    return claimed


def wish(world: World, job: Job) -> str | None:
    """What the next heartbeat of a running job brings."""
    found: str | None = world.holder(jobs.renew, job, 60.0)
    return found


def test_it_is_said_why_a_job_waits(world: World) -> None:
    job, second, third = world.submit(), world.submit(), world.submit()
    assert world.act(queues.waiting, job) == "no worker serves queue cpu"
    serve(world)
    assert world.act(queues.waiting, job) == "starting now"
    assert world.act(queues.waiting, second) == "1 job is ahead in queue cpu"
    assert world.act(queues.waiting, third) == "2 jobs are ahead in queue cpu"
    with world.database.transaction() as session:
        jobs.claim(session, "w/1", ["cpu"], 60.0, "w")
    assert world.act(queues.waiting, second) == "next in queue cpu: every worker is busy"


def test_it_is_said_why_a_job_of_several_devices_waits(world: World) -> None:
    job = world.submit(devices=2)
    serve(world, "a")
    assert world.act(queues.waiting, job) == "no worker of queue cpu has 2 devices"
    serve(world, "b", "gpu", devices=4)
    assert world.act(queues.waiting, job) == "no worker of queue cpu has 2 devices"
    serve(world, "c", devices=2)
    assert world.act(queues.waiting, job) == (
        "next in queue cpu: starts when a worker has 2 devices free"
    )


def take(world: World, free: int, devices: int) -> str | None:
    """The id of the job that a worker gets of whose `devices` so many are free."""
    with world.database.transaction() as session:
        owner = f"w/{uuid4().hex}"
        claimed = jobs.claim(session, owner, ["cpu"], 60.0, "w", free=free, devices=devices)
    return claimed.id if claimed else None


def test_a_job_is_taken_only_with_all_its_devices_and_nothing_is_taken_before_it(
    world: World,
) -> None:
    large, small = world.submit(devices=3), world.submit()
    assert world.act(queues.any_ready, ["cpu"], 3)
    assert take(world, 2, 3) is None
    assert world.job(large).status == "queued"
    assert take(world, 3, 3) == large.id
    assert take(world, 1, 3) == small.id


def test_a_job_of_more_devices_than_a_worker_has_is_for_others(world: World) -> None:
    world.submit(devices=3)
    assert not world.act(queues.any_ready, ["cpu"], 2)
    assert take(world, 2, 2) is None
    small = world.submit()
    assert take(world, 2, 2) == small.id


def test_a_better_job_is_taken_while_one_of_several_devices_is_waited_for(world: World) -> None:
    world.submit(devices=3)
    urgent = world.submit(priority=1)
    assert take(world, 1, 3) == urgent.id


def test_a_claim_that_is_repeated_gets_its_job_whatever_is_free_by_then(world: World) -> None:
    job = world.submit(devices=3)
    claim = partial(jobs.claim, owner="w/1", served=["cpu"], ttl=60.0, worker_id="w")
    for free in (3, 0):
        claimed = world.act(lambda session, free=free: claim(session, free=free, devices=3))
        assert claimed.id == job.id
        assert claimed.lease_epoch == 1


def test_a_job_of_several_devices_takes_nobodys_and_gives_up_all_of_its_own(world: World) -> None:
    serve(world, devices=2)
    low = run(world)
    large = world.submit(priority=1, devices=2)
    assert wish(world, low) is None
    world.holder(jobs.release, low, charge=False)
    assert take(world, 2, 2) == large.id
    running = world.job(large)
    serve(world, "sibling", slots=0, devices=2)
    world.submit(priority=2)
    assert wish(world, running) == "preempt"


def test_ready_jobs_are_counted_by_queue(world: World) -> None:
    run(world)
    world.submit()
    world.submit(queue="gpu", kind="evaluate")
    assert world.act(queues.ready_count) == 2
    assert world.act(queues.ready_count, ["gpu"]) == 1
    assert world.act(queues.any_ready, ["gpu"])
    assert not world.act(queues.any_ready, ["tpu"])
    depths = world.act(queues.depths)
    assert {queue: depth["queued"] for queue, depth in depths.items()} == {"cpu": 1, "gpu": 1}
    assert 0 <= depths["cpu"]["oldest_seconds"] < 60


def test_a_job_of_higher_priority_takes_the_device_of_a_lower_one(world: World) -> None:
    serve(world)
    low = run(world)
    assert wish(world, low) is None
    high = world.submit(priority=1)
    assert wish(world, low) == "preempt"
    assert world.act(queues.waiting, high) == (
        f"{low.id}, which has a lower priority, is giving its device up"
    )
    reason = {"code": "preempted", "message": "..."}
    assert world.holder(jobs.release, low, charge=False, reason=reason) == "queued"
    assert world.job(low).attempt == 0
    claimed = world.claim()
    assert claimed is not None
    assert claimed.id == high.id


@pytest.mark.parametrize("priority", [-1, 0])
def test_a_job_gives_way_to_none_of_the_same_or_a_lower_priority(
    world: World, priority: int
) -> None:
    serve(world)
    low = run(world)
    world.submit(priority=priority)
    assert wish(world, low) is None


def test_nothing_is_preempted_while_a_device_is_free(world: World) -> None:
    serve(world, "a")
    serve(world, "b")
    low = run(world, "a")
    world.submit(priority=1)
    assert wish(world, low) is None
    world.submit(priority=1)
    assert wish(world, low) == "preempt", "the free device goes to the first of the two"


def test_the_lowest_priority_gives_way_first_and_among_equals_the_youngest(world: World) -> None:
    running = []
    for worker, priority in [("a", 1), ("b", 0), ("c", 0), ("d", 3)]:
        serve(world, worker)
        running.append(run(world, worker, priority=priority))
    one, old, young, high = running

    def preempted() -> set[str]:
        return {job.id for job in running if wish(world, job) == "preempt"}

    world.submit(priority=2)
    assert preempted() == {young.id}
    world.submit(priority=2)
    assert preempted() == {young.id, old.id}
    world.submit(priority=2)
    world.submit(priority=2)
    assert preempted() == {young.id, old.id, one.id}
    assert wish(world, high) is None


def test_only_a_worker_that_serves_the_queue_has_something_to_give(world: World) -> None:
    serve(world, "a")
    serve(world, "b", "gpu", "cpu")
    on_cpu, on_gpu = run(world, "a"), run(world, "b")
    world.submit(priority=1, queue="gpu")
    assert (wish(world, on_cpu), wish(world, on_gpu)) == (None, "preempt")


def test_many_good_jobs_of_one_queue_hide_none_of_another(world: World) -> None:
    serve(world, "a")
    serve(world, "b", "gpu")
    _, on_gpu = run(world, "a", priority=9), run(world, "b", queue="gpu")
    for _ in range(3):
        world.submit(priority=5)
    world.submit(priority=1, queue="gpu")
    assert wish(world, on_gpu) == "preempt"


def test_a_job_that_has_to_wait_before_its_next_attempt_preempts_nobody(world: World) -> None:
    serve(world, "a")
    again = run(world, "a", priority=1)
    world.holder(jobs.release, again, charge=True, delay=600.0)
    low = run(world, "a")
    assert wish(world, low) is None
    world.hurry()
    assert wish(world, low) == "preempt"


@pytest.mark.parametrize("asked", [jobs.cancel, jobs.pause, jobs.stop])
def test_a_device_that_will_soon_be_free_is_waited_for(world: World, asked: Any) -> None:
    serve(world, "a")
    serve(world, "b")
    ending, low = run(world, "a"), run(world, "b")
    world.save(ending)
    world.user(asked, ending)
    world.submit(priority=1)
    assert wish(world, low) is None
    assert wish(world, ending) == asked.__name__


def test_what_the_user_wants_comes_before_what_others_need(world: World) -> None:
    serve(world)
    low = run(world)
    world.submit(priority=1)
    world.user(jobs.cancel, low)
    assert wish(world, low) == "cancel"


def test_a_worker_that_is_leaving_or_silent_has_nothing_to_give(world: World) -> None:
    serve(world, "a", status="draining")
    low = run(world, "a")
    world.submit(priority=1)
    assert wish(world, low) is None
    serve(world, "a", status="busy")
    assert wish(world, low) == "preempt"
    world.act(workers.gone, "a")
    assert wish(world, low) is None


def test_a_higher_priority_given_later_preempts_as_well(world: World) -> None:
    serve(world)
    low, other = run(world), world.submit()
    assert wish(world, low) is None
    world.user(jobs.update, other, priority=5)
    assert wish(world, low) == "preempt"


def test_a_job_that_is_taken_while_it_is_looked_at_gives_way_like_any_other(
    postgres_database: Database,  # SQLite shows a transaction what was there when it began
) -> None:
    world = World(postgres_database)
    serve(world)
    low = world.submit()
    with world.database.transaction(read_only=True) as session:
        seen = jobs.load(session, low.id)
        with world.database.transaction() as other:
            jobs.claim(other, "w/1", ["cpu"], 60.0, "w")
        high = world.submit(priority=1)
        assert {id: job.id for id, job in queues.preemptions(session).items()} == {low.id: high.id}
        assert seen.status == "running"
