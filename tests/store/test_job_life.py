"""A job from its submission to its end, and everything that may come between."""

import threading
from typing import Any

import pytest

from store import checkpoints, datasets, events, jobs, logs, metrics, models, queues
from store.errors import Conflict, Fenced, NotFound
from store.tables import Job, JobEvent
from tests.store.world import TTL, World


def statuses(world: World, job: Job) -> list[Any]:
    page = world.act(events.page, job.id)
    return [event.data["status"] for event in page.rows if event.type == "status"]


# Claiming


def test_the_highest_priority_is_taken_first_and_then_the_oldest(world: World) -> None:
    low, first, second = world.submit(), world.submit(priority=1), world.submit(priority=1)
    taken = [world.claim() for _ in range(3)]
    assert [job.id for job in taken if job] == [first.id, second.id, low.id]
    assert world.claim() is None


def test_a_claim_raises_the_fence_and_counts_the_attempt(world: World) -> None:
    job = world.start()
    assert (job.status, job.lease_epoch, job.attempt, job.claims) == ("running", 1, 1, 1)
    assert job.started_at is not None
    assert job.lease_until is not None


def test_only_the_queues_asked_for_are_served(world: World) -> None:
    world.submit(queue="gpu")
    assert world.claim("cpu") is None
    assert world.claim("cpu", "gpu") is not None


def test_a_repeated_claim_gets_the_job_it_already_has(world: World) -> None:
    first, second = world.submit(), world.submit()
    took = [world.act(jobs.claim, "w/1", ["cpu"], TTL, "w") for _ in range(2)]
    assert [job.id for job in took] == [first.id, first.id]
    assert took[1].lease_epoch == 1
    assert world.job(second).status == "queued"


def test_eight_racing_workers_take_every_job_once(world: World) -> None:
    submitted = {world.submit().id for _ in range(24)}
    taken: list[str] = []

    def work() -> None:
        while (job := world.claim()) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A racer that finds the last rows locked by others may leave early, but nothing is taken twice.
    while (job := world.claim()) is not None:
        taken.append(job.id)
    assert len(taken) == len(submitted)
    assert set(taken) == submitted


# The fence


WRITES: dict[str, tuple[Any, dict[str, Any]]] = {
    "renew": (jobs.renew, {"ttl": TTL}),
    "record": (
        jobs.record,
        {
            "points": [(1, 1, {"train/loss": 1.0})],
            "progress": {"step": 1},
            "lines": [("info", "x")],
        },
    ),
    "note": (jobs.note, {"type": "note", "data": {}}),
    "release": (jobs.release, {"charge": True}),
    "succeed": (jobs.finish, {"status": "succeeded"}),
    "fail": (jobs.finish, {"status": "failed", "error": {"code": "x", "message": "y"}}),
    "cancel": (jobs.finish, {"status": "cancelled"}),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_lost_lease_writes_nothing(world: World, write: str) -> None:
    stale = world.start()
    world.lose(stale)
    assert world.act(jobs.reap) == [stale.id]
    holder = world.claim()
    assert holder is not None
    assert holder.lease_epoch == 2
    function, options = WRITES[write]
    assert world.fenced(function, stale, **options)
    with pytest.raises(Fenced):
        world.save(stale)
    after = world.job(holder)
    assert (after.status, after.lease_epoch, after.progress) == ("running", 2, {})
    assert after.lease_until == holder.lease_until
    assert world.act(metrics.curve, holder.id) == {}
    assert world.act(logs.page, holder.id).rows == []
    assert world.act(checkpoints.page, holder.id) == []
    assert statuses(world, holder) == ["queued", "running", "queued", "running"]


def test_a_deleted_job_fences_its_holder(world: World) -> None:
    job = world.start()
    world.holder(jobs.finish, job, "failed")
    world.user(jobs.delete, job)
    assert world.fenced(jobs.renew, job, TTL)


def test_a_late_renewal_is_fine_while_nobody_took_over(world: World) -> None:
    job = world.start()
    world.lose(job)
    assert world.holder(jobs.renew, job, TTL) is None
    assert world.act(jobs.reap) == []


def test_the_heartbeat_brings_what_the_user_wants(world: World) -> None:
    job = world.start()
    assert world.holder(jobs.renew, job, TTL) is None
    world.user(jobs.pause, job)
    assert world.holder(jobs.renew, job, TTL) == "pause"
    assert jobs.shown_status(world.job(job)) == "pausing"
    world.user(jobs.cancel, job)
    assert world.holder(jobs.renew, job, TTL) == "cancel"
    assert jobs.shown_status(world.job(job)) == "cancelling"


# Ending


def test_a_training_that_succeeded_makes_a_model_version(world: World) -> None:
    job = world.start(model_name="stars")
    best = world.save(job, 1)
    world.save(job, 2, is_best=False)
    done = world.holder(jobs.finish, job, "succeeded", metrics={"test": {"accuracy": 0.5}})
    assert (done.status, jobs.shown_model(done)) == ("succeeded", "stars@1")
    assert done.metrics == {"test": {"accuracy": 0.5}}
    assert done.finished_at is not None
    assert world.act(models.resolve, world.project, "stars").checkpoint.id == best.id


def test_a_repeated_finish_is_a_success_and_makes_no_second_model(world: World) -> None:
    job = world.start()
    world.save(job)
    for _ in range(2):
        assert world.holder(jobs.finish, job, "succeeded").status == "succeeded"
    assert len(world.act(models.versions, world.project, "reviews")) == 1
    assert world.fenced(jobs.finish, job, "failed")


def test_an_end_told_by_a_lost_lease_is_refused_even_when_it_is_the_same(world: World) -> None:
    stale = world.start()
    world.lose(stale)
    world.act(jobs.reap)
    holder = world.claim()
    assert holder is not None
    world.holder(jobs.finish, holder, "failed")
    assert world.fenced(jobs.finish, stale, "failed")


def test_a_training_cannot_succeed_without_a_checkpoint(world: World) -> None:
    job = world.start()
    with pytest.raises(Conflict, match="no checkpoint to make a model of"):
        world.holder(jobs.finish, job, "succeeded")
    assert world.job(job).status == "running"


def test_an_evaluation_ends_with_its_result_and_makes_no_model(world: World) -> None:
    job = world.start(kind="evaluate")
    done = world.holder(jobs.finish, job, "succeeded", result={"accuracy": 1.0})
    assert (done.result, jobs.shown_model(done)) == ({"accuracy": 1.0}, None)


def test_a_failed_job_says_why_and_keeps_its_traceback_out_of_the_events(world: World) -> None:
    job = world.start()
    error = {"code": "diverged", "message": "The loss grew.", "traceback": "Traceback ..."}
    done = world.holder(jobs.finish, job, "failed", error=error)
    assert done.error == error
    last = world.act(events.page, job.id).rows[-1]
    assert last.data["error"] == {"code": "diverged", "message": "The loss grew."}


def test_a_cancelled_job_loses_what_it_learned(world: World) -> None:
    job = world.start()
    world.save(job)
    world.holder(jobs.finish, job, "cancelled")
    assert world.act(checkpoints.page, job.id) == []


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("wish", [jobs.cancel, jobs.stop, jobs.pause, jobs.resume])
def test_a_finished_job_never_changes(world: World, end: Any, wish: Any) -> None:
    job = world.start()
    world.save(job)
    world.holder(jobs.finish, job, end)
    before = statuses(world, job)
    with pytest.raises(Conflict, match=f"{end} already"):
        world.user(wish, job)
    with pytest.raises(Conflict):
        world.user(jobs.update, job, priority=3)
    assert statuses(world, job) == before
    assert world.job(job).status == end
    assert world.claim() is None


# Coming back


def test_a_lost_job_is_queued_again_until_its_attempts_are_used_up(world: World) -> None:
    job = world.submit()
    for attempt in (1, 2, 3):
        world.hurry()
        claimed = world.claim()
        assert claimed is not None
        assert claimed.attempt == attempt
        world.lose(claimed)
        assert world.act(jobs.reap) == [job.id]
    failed = world.job(job)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error["code"], failed.error["cause"]) == ("poison", "lost")
    assert "tried 3 times in a row without progress" in failed.error["message"]


def test_a_living_lease_is_not_reaped(world: World) -> None:
    world.start()
    assert world.act(jobs.reap) == []


def test_progress_pays_attempts_back(world: World) -> None:
    job = world.start()
    for round_ in range(5):
        world.save(job, round_ + 1)
        assert world.holder(jobs.release, job, charge=True) == "queued"
        claimed = world.claim()
        assert claimed is not None
        job = claimed
        assert job.attempt == 2


def test_the_same_step_again_is_no_progress(world: World) -> None:
    job = world.start()
    world.save(job, 5)
    assert world.holder(jobs.release, job, charge=True) == "queued"
    again = world.claim()
    assert again is not None
    world.save(again, 5)
    assert world.job(again).attempt == 2


def test_a_job_given_back_without_fault_keeps_its_attempts(world: World) -> None:
    job = world.start(max_attempts=1)
    for _ in range(3):
        assert world.holder(jobs.release, job, charge=False) == "queued"
        claimed = world.claim()
        assert claimed is not None
        job = claimed
        assert job.attempt == 1


def test_a_job_given_back_with_a_delay_waits(world: World) -> None:
    job = world.start()
    world.holder(jobs.release, job, charge=True, delay=600.0)
    assert world.claim() is None
    waiting = world.act(queues.waiting, world.job(job))
    assert waiting.startswith("retry in ")
    world.hurry()
    assert world.claim() is not None


def test_the_reason_of_the_last_attempt_is_told(world: World) -> None:
    job = world.start(max_attempts=1)
    reason = {"code": "out_of_memory", "message": "The GPU's memory was full.", "traceback": "..."}
    assert world.holder(jobs.release, job, charge=True, reason=reason) == "failed"
    error = world.job(job).error
    assert error is not None
    assert (error["code"], error["cause"]) == ("poison", "out_of_memory")
    assert error["message"].endswith("The GPU's memory was full.")
    assert error["traceback"] == "..."


# What users ask for


def test_a_queued_job_is_cancelled_at_once(world: World) -> None:
    job = world.submit()
    assert world.user(jobs.cancel, job).status == "cancelled"
    assert world.claim() is None


def test_a_running_job_is_cancelled_when_its_holder_is_gone(world: World) -> None:
    job = world.start()
    world.save(job)
    world.user(jobs.cancel, job)
    world.lose(job)
    world.act(jobs.reap)
    assert world.job(job).status == "cancelled"
    assert world.act(checkpoints.page, job.id) == []


def test_a_paused_job_waits_until_it_is_resumed(world: World) -> None:
    job = world.start()
    world.user(jobs.pause, job)
    assert world.holder(jobs.release, job, charge=True) == "paused"
    assert world.claim() is None
    resumed = world.user(jobs.resume, job)
    assert (resumed.status, resumed.attempt) == ("queued", 0)
    assert world.claim() is not None


def test_a_job_that_is_lost_while_pausing_is_paused_even_in_its_last_attempt(world: World) -> None:
    job = world.start(max_attempts=1)
    world.user(jobs.pause, job)
    assert world.holder(jobs.release, job, charge=True) == "paused"


def test_a_queued_job_is_paused_at_once_and_pausing_it_again_changes_nothing(world: World) -> None:
    job = world.submit()
    world.user(jobs.pause, job)
    world.user(jobs.pause, job)
    assert statuses(world, job) == ["queued", "paused"]


def test_a_pause_can_be_taken_back_before_it_happens(world: World) -> None:
    job = world.start()
    world.user(jobs.pause, job)
    assert world.user(jobs.resume, job).desired is None
    assert jobs.shown_status(world.job(job)) == "running"


def test_only_a_paused_job_can_be_resumed(world: World) -> None:
    for job in (world.submit(), world.submit(queue="gpu")):
        with pytest.raises(Conflict, match="only a paused job can be resumed"):
            world.user(jobs.resume, job)


def test_a_job_that_is_being_cancelled_cannot_be_paused(world: World) -> None:
    job = world.start()
    world.user(jobs.cancel, job)
    for wish in (jobs.pause, jobs.stop):
        with pytest.raises(Conflict, match="being cancelled"):
            world.user(wish, job)


def test_stopping_a_waiting_job_keeps_the_best_it_learned(world: World) -> None:
    job = world.start()
    best = world.save(job, 1)
    world.save(job, 2, is_best=False)
    world.holder(jobs.release, job, charge=False)
    stopped = world.user(jobs.stop, job)
    assert (stopped.status, stopped.model_version) == ("succeeded", 1)
    assert world.act(models.resolve, world.project, "reviews").checkpoint.id == best.id


def test_a_job_that_learned_nothing_cannot_be_stopped(world: World) -> None:
    with pytest.raises(Conflict, match="has learned nothing yet"):
        world.user(jobs.stop, world.submit())


def test_an_evaluation_cannot_be_stopped(world: World) -> None:
    with pytest.raises(Conflict, match="no training"):
        world.user(jobs.stop, world.submit(kind="evaluate"))


def test_a_wish_to_stop_outlives_the_run_it_was_meant_for(world: World) -> None:
    job = world.start()
    world.user(jobs.stop, job)
    world.lose(job)
    world.act(jobs.reap)
    again = world.claim()
    assert again is not None
    assert world.holder(jobs.renew, again, TTL) == "stop"
    world.save(again)
    world.lose(again)
    world.act(jobs.reap)
    assert world.job(job).status == "succeeded"


def test_a_job_can_be_renamed_and_moved_in_its_queue(world: World) -> None:
    first, second = world.submit(), world.submit()
    moved = world.user(jobs.update, second, name="urgent", priority=5)
    assert (moved.name, moved.priority) == ("urgent", 5)
    claimed = world.claim()
    assert claimed is not None
    assert claimed.id == second.id
    assert world.job(first).status == "queued"


def test_only_a_finished_job_can_be_deleted(world: World) -> None:
    job = world.start()
    world.holder(jobs.record, job, points=[(1, 1, {"x": 1.0})], lines=[("info", "hello")])
    with pytest.raises(Conflict, match="cancel it before deleting it"):
        world.user(jobs.delete, job)
    world.holder(jobs.finish, job, "failed")
    world.user(jobs.delete, job)
    with pytest.raises(NotFound):
        world.job(job)


def test_a_model_outlives_the_job_that_made_it(world: World) -> None:
    job = world.start()
    best = world.save(job, 1)
    last = world.save(job, 2, is_best=False)
    world.holder(jobs.finish, job, "succeeded")
    world.user(jobs.delete, job)
    assert world.act(models.resolve, world.project, "reviews@1").checkpoint.id == best.id
    with pytest.raises(NotFound):
        world.act(checkpoints.load, last.id)
    world.act(models.delete, world.project, "reviews")
    with pytest.raises(NotFound):
        world.act(checkpoints.load, best.id)


# What is written and shown


def test_events_are_numbered_without_gaps_even_when_written_at_once(world: World) -> None:
    job = world.start()

    def write() -> None:
        for _ in range(5):
            world.act(events.add, job.id, "note", {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows: list[JobEvent] = world.act(events.page, job.id).rows
    assert [event.seq for event in rows] == list(range(1, 23))


def test_events_and_lines_are_read_from_where_one_left_off(world: World) -> None:
    job = world.start()
    world.holder(jobs.record, job, lines=[("info", f"line {n}") for n in range(5)])
    first = world.act(logs.page, job.id, 0, 3)
    assert ([line.line for line in first.rows], first.has_more, first.next) == (
        ["line 0", "line 1", "line 2"],
        True,
        "3",
    )
    rest = world.act(logs.page, job.id, 3, 3)
    assert ([line.seq for line in rest.rows], rest.has_more) == ([4, 5], False)
    assert [event.seq for event in world.act(events.page, job.id, 1).rows] == [2]


def test_lines_and_numbers_that_a_database_cannot_hold_come_as_near_as_can_be(world: World) -> None:
    job = world.start()
    lines, progress = [("info", "a\0b \ud800")], {"loss": float("nan"), "name": "x\0", "big": 2**60}
    world.holder(jobs.record, job, lines=lines, progress=progress)
    assert world.act(logs.page, job.id).rows[0].line == "a\ufffdb ?"
    assert world.job(job).progress == {"loss": None, "name": "x\ufffd", "big": 2**60}


def test_jobs_are_counted_by_status_and_kind(world: World) -> None:
    world.start()
    world.submit()
    world.submit(queue="gpu", kind="evaluate")
    assert world.act(jobs.counts) == {
        ("running", "train"): 1,
        ("queued", "train"): 1,
        ("queued", "evaluate"): 1,
    }


def test_jobs_are_paged_newest_first_while_others_are_added(world: World) -> None:
    made = [world.submit().id for _ in range(5)]
    first = world.act(jobs.page, world.project, 2)
    world.submit()
    second = world.act(jobs.page, world.project, 2, first.next)
    third = world.act(jobs.page, world.project, 2, second.next)
    seen = [job.id for page in (first, second, third) for job in page.rows]
    assert seen == made[::-1]
    assert (first.has_more, third.has_more, third.next) == (True, False, None)


def test_jobs_are_found_by_what_is_shown(world: World) -> None:
    pausing, running = world.start(), world.start()
    queued = world.submit(task="tabular-regression")
    world.user(jobs.pause, pausing)
    by_status = {
        status: [job.id for job in world.act(jobs.page, world.project, status=status).rows]
        for status in ("queued", "running", "pausing", "cancelling", "paused")
    }
    assert by_status == {
        "queued": [queued.id],
        "running": [running.id],
        "pausing": [pausing.id],
        "cancelling": [],
        "paused": [],
    }
    by_task = world.act(jobs.page, world.project, task="tabular-regression")
    assert [job.id for job in by_task.rows] == [queued.id]
    assert len(world.act(jobs.page, world.project, dataset=world.dataset).rows) == 3


def test_a_data_set_in_use_cannot_be_deleted_and_a_finished_job_keeps_its_name(
    world: World,
) -> None:
    job = world.submit()
    with pytest.raises(Conflict, match=f"needed by job {job.id}, which is queued"):
        world.act(datasets.delete, world.project, world.dataset)
    world.user(jobs.cancel, job)
    world.act(datasets.delete, world.project, world.dataset)
    after = world.job(job)
    assert (after.dataset_id, after.dataset_name) == (None, "reviews")
