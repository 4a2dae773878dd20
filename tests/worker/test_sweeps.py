"""Sweeps as workers look after them: trials are made once each, given up or not, and the best is kept."""

import threading
from typing import Any

import pytest

from store import checkpoints, datasets, jobs, models, sweeps
from store.errors import Conflict, NotFound
from store.session import now
from store.tables import Checkpoint, Job, Sweep
from tests.worker.crew import Worker, until
from tests.worker.shop import Orders, Shop, rows, texts
from worker import keeper
from worker.keeper import Keeper
from worker.reconciler import Reconciler
from worker.sweeps import tend
from worker.trainer import Command

RATE = "training.optimizer.learning_rate"
SPACE = {
    RATE: {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "training.batch_size": {"type": "int", "low": 16, "high": 64, "step": 16},
    "task.architecture.width": {"type": "choice", "choices": [4, 8]},
}
TASK = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 8}


class Watched(Orders):
    """After some steps, a keeper looks at the sweep, and the heartbeat brings what it wants."""

    def __init__(self, shop: Shop, job: Job) -> None:
        super().__init__(None, 40)
        self._shop, self._job = shop, job

    def _due(self) -> Command | None:
        job = self._job
        tend(self._shop.database, job.sweep_id or "")
        wish: Command | None = self._shop.act(jobs.renew, job.id, job.lease_epoch, 60.0)
        return wish


def search(shop: Shop, **options: Any) -> Sweep:
    """A sweep over a small network on a small table."""
    given: dict[str, Any] = {
        "name": "found",
        "dataset_id": options.pop("dataset", None) or shop.upload(TASK, rows(60)).id,
        "task": TASK,
        "request": {
            "task": {"name": TASK, "architecture": SMALL},
            "training": {"epochs": 2},
        },
        "metric": "accuracy",
        "maximise": True,
        "space": SPACE,
        "sampler": {"name": "tpe", "startup_trials": 3},
        "pruner": {"name": "none"},
        "seed": 0,
        "trials": 6,
        "parallel": 2,
        "queue": "cpu",
    }
    found: Sweep = shop.act(sweeps.create, shop.project, **(given | options))
    return found


def row(shop: Shop, sweep: Sweep) -> Sweep:
    found: Sweep = shop.act(sweeps.get, shop.project, sweep.id)
    return found


def trials(shop: Shop, sweep: Sweep) -> list[Job]:
    found: list[Job] = shop.act(sweeps.trials, sweep.id)
    return found


def take(shop: Shop, number: int, sweep: Sweep) -> Job:
    return shop.claimed(trials(shop, sweep)[number])


def ended_trials(shop: Shop, sweep: Sweep) -> int:
    return sum(not sweeps.active(job) for job in trials(shop, sweep))


def learn(shop: Shop, job: Job, *values: float) -> None:
    """Have a trial be judged after each of its epochs, without learning anything."""
    for place, value in enumerate(values):
        step, points = place + 1, {"validation/accuracy": value}
        progress = {"epoch": step, "step": step}
        epoch = job.lease_epoch
        shop.act(jobs.record, job.id, epoch, points=[(step, step, points)], progress=progress)
    best = {"validation": {"accuracy": max(values)}}
    blob = shop.act(sweeps_blob, job)
    shop.act(
        checkpoints.publish,
        job.id,
        job.lease_epoch,
        step=len(values),
        epoch=len(values),
        metrics=best,
        value=max(values),
        is_best=True,
        weights_blob=blob,
        codec_blob=blob,
        state_blob=None,
        state={},
        spec=job.spec,
    )


def sweeps_blob(session: Any, job: Job) -> str:
    """Any bytes: those of the data set."""
    return next(iter(datasets.files(session, job.dataset_id or "").values()))


def done(shop: Shop, job: Job, *values: float) -> None:
    learn(shop, job, *values)
    shop.act(jobs.finish, job.id, job.lease_epoch, "succeeded")


def test_six_trials_are_trained_and_the_best_is_served_by_the_sweeps_name(small_shop: Shop) -> None:
    shop, sweep = small_shop, search(small_shop)
    for _ in range(6):
        tend(shop.database, sweep.id)
        ready = next(job for job in trials(shop, sweep) if job.status == "queued")
        assert sum(map(sweeps.active, trials(shop, sweep))) <= 2
        shop.train(ready)
    tend(shop.database, sweep.id)
    ended, made = row(shop, sweep), trials(shop, sweep)
    assert (ended.status, ended.made) == ("succeeded", 6)
    assert [job.trial for job in made] == list(range(6))
    values = [job.metrics["validation"]["accuracy"] for job in made]
    assert ended.best is not None
    assert ended.best["value"] == max(values)
    best = made[ended.best["trial"]]
    assert best.parameters == ended.best["parameters"]
    resolved = shop.act(models.resolve, shop.project, "found")
    assert resolved.ref == "found@1"
    assert resolved.checkpoint.job_id == best.id == ended.best["job"]
    served = shop.trained(resolved.checkpoint)
    (prediction,) = served.predict(served.codec.read_inputs([{"a": 3, "b": 3, "kind": "x"}]))
    assert prediction.label in ("high", "low")
    assert [job.model_id is not None for job in made] == [job.id == best.id for job in made]
    assert set(ended.importances or {}) in ({}, set(SPACE))
    assert len(shop.act(models.versions, shop.project, "found")) == 1


def test_a_trials_job_is_the_request_with_what_was_chosen(small_shop: Shop) -> None:
    sweep = search(small_shop, parallel=6)
    tend(small_shop.database, sweep.id)
    made = trials(small_shop, sweep)
    assert len(made) == 6
    for job in made:
        chosen, training = job.parameters or {}, job.spec["training"]
        assert training["optimizer"]["learning_rate"] == chosen[RATE]
        assert training["batch_size"] == chosen["training.batch_size"] % 65
        assert job.spec["task"]["architecture"]["width"] == chosen["task.architecture.width"]
        assert training["epochs"] == 2
        assert 1e-4 <= chosen[RATE] <= 1e-1
    assert len({job.parameters[RATE] for job in made if job.parameters}) == 6


def test_the_same_seed_tries_the_same_and_another_one_does_not(small_shop: Shop) -> None:
    dataset = small_shop.upload(TASK, rows(60)).id
    tried = []
    for seed in (1, 1, 2):
        sweep = search(small_shop, dataset=dataset, seed=seed, parallel=6)
        tend(small_shop.database, sweep.id)
        tried.append([job.parameters for job in trials(small_shop, sweep)])
        small_shop.act(sweeps.cancel, small_shop.project, sweep.id)
    assert tried[0] == tried[1] != tried[2]


def test_two_keepers_make_each_trial_once(shop: Shop) -> None:
    sweep = search(shop, trials=9, parallel=9, sampler={"name": "random"})
    failures: list[BaseException] = []

    def keep() -> None:
        try:
            tend(shop.database, sweep.id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [job.trial for job in trials(shop, sweep)] == list(range(9))
    assert row(shop, sweep).made == 9


def test_a_trial_that_somebody_else_made_is_not_made_again(shop: Shop) -> None:
    sweep = search(shop)
    given: dict[str, Any] = {"parameters": {}, "request": {}, "spec": {}}
    assert shop.act(sweeps.add, sweep.id, 0, **given) is not None
    assert shop.act(sweeps.add, sweep.id, 0, **given) is None
    assert shop.act(sweeps.add, sweep.id, 2, **given) is None
    assert len(trials(shop, sweep)) == 1


@pytest.mark.parametrize("step", ["add", "finish"])
def test_a_killed_keeper_loses_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sweep = search(shop, trials=1)

    def killed(session: Any, *given: Any, **more: Any) -> Any:
        real(session, *given, **more)
        raise KeyboardInterrupt  # before COMMIT

    if step == "finish":
        tend(shop.database, sweep.id)
        done(shop, take(shop, 0, sweep), 0.5)
    real = getattr(sweeps, step)
    assert shop.act(sweeps.take, sweep.id, 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, step, killed)
        with pytest.raises(KeyboardInterrupt):
            tend(shop.database, sweep.id)
    assert (len(trials(shop, sweep)), row(shop, sweep).status) == (step == "finish", "running")
    assert shop.act(sweeps.due) == [], "it is in the hands of the one that was killed"
    with shop.database.transaction() as session:
        sweeps.lock(session, sweep.id).kept_until = now(session).replace(year=2000)
    assert shop.act(sweeps.due) == [sweep.id]
    tend(shop.database, sweep.id)
    assert len(trials(shop, sweep)) == 1
    assert row(shop, sweep).status == ("succeeded" if step == "finish" else "running")


def test_a_sweep_is_due_when_something_happened_and_not_before(shop: Shop) -> None:
    sweep = search(shop, trials=2, parallel=1, pruner={"name": "median"})
    assert shop.act(sweeps.due) == [sweep.id]
    assert shop.act(sweeps.take, sweep.id, 60.0)
    assert not shop.act(sweeps.take, sweep.id, 60.0)
    tend(shop.database, sweep.id)
    assert shop.act(sweeps.due) == []
    job = take(shop, 0, sweep)
    tend(shop.database, sweep.id)
    learn(shop, job, 0.5)
    assert shop.act(sweeps.due) == [sweep.id], "there is an epoch to compare"
    tend(shop.database, sweep.id)
    assert shop.act(sweeps.due) == []
    shop.act(jobs.finish, job.id, job.lease_epoch, "succeeded")
    assert shop.act(sweeps.due) == [sweep.id]


def test_the_median_pruner_stops_a_bad_trial_and_marks_it(shop: Shop) -> None:
    pruner = {"name": "median", "startup_trials": 2, "warmup_epochs": 1}
    sweep = search(shop, parallel=4, trials=4, pruner=pruner)
    tend(shop.database, sweep.id)
    bad, good, late, other = (take(shop, number, sweep) for number in range(4))
    done(shop, other, 0.6, 0.7, 0.8)
    done(shop, late, 0.7, 0.8, 0.9)
    learn(shop, bad, 0.1, 0.2)
    learn(shop, good, 0.8, 0.9)
    tend(shop.database, sweep.id)
    found = trials(shop, sweep)
    assert [job.pruned for job in found] == [True, False, False, False]
    assert [job.desired for job in found] == ["stop", None, None, None]
    assert shop.act(jobs.renew, bad.id, bad.lease_epoch, 60.0) == "stop"
    shop.act(jobs.finish, bad.id, bad.lease_epoch, "succeeded")
    shop.act(jobs.finish, good.id, good.lease_epoch, "succeeded")
    tend(shop.database, sweep.id)
    ended = row(shop, sweep)
    assert ended.best is not None
    assert (ended.status, ended.best["value"]) == ("succeeded", 0.9)
    assert ended.best["trial"] == 1, "the earliest of equals"


def test_successive_halving_lets_the_best_third_go_on(small_shop: Shop) -> None:
    shop, pruner = small_shop, {"name": "successive-halving", "min_epochs": 1, "factor": 3}
    sweep = search(shop, parallel=4, trials=4, pruner=pruner)
    tend(shop.database, sweep.id)
    first, second, third, fourth = (take(shop, number, sweep) for number in range(4))
    learn(shop, first, 0.5)
    learn(shop, second, 0.9)
    tend(shop.database, sweep.id)
    assert not any(job.pruned for job in trials(shop, sweep)), "two are too few to compare"
    learn(shop, third, 0.7)
    learn(shop, fourth, 0.8, 0.8, 0.8)
    tend(shop.database, sweep.id)
    # The fourth is alone on the rung of three epochs.
    assert [job.pruned for job in trials(shop, sweep)] == [True, False, True, False]


def test_a_pruned_training_really_ends(small_shop: Shop) -> None:
    shop = small_shop
    request = {"task": {"name": TASK, "architecture": SMALL}, "training": {"epochs": 500}}
    pruner = {"name": "median", "startup_trials": 1, "warmup_epochs": 1}
    sweep = search(shop, parallel=2, trials=2, pruner=pruner, request=request)
    tend(shop.database, sweep.id)
    done(shop, take(shop, 0, sweep), *[1.1] * 500)
    bad = take(shop, 1, sweep)
    shop.work(bad, Watched(shop, bad), checkpoint_seconds=0.0, checkpoint_share=1.0)
    ended = shop.job(bad)
    assert (ended.status, ended.pruned) == ("succeeded", True)
    assert 0 < ended.progress["epoch"] < 500
    tend(shop.database, sweep.id)
    assert row(shop, sweep).status == "succeeded"


def test_a_failed_trial_is_no_end_and_none_that_succeeded_is(shop: Shop) -> None:
    sweep = search(shop, trials=2, parallel=2)
    tend(shop.database, sweep.id)
    for number in range(2):
        job = take(shop, number, sweep)
        error = {"code": "diverged", "message": f"Number {number} diverged."}
        shop.act(jobs.finish, job.id, job.lease_epoch, "failed", error=error)
    tend(shop.database, sweep.id)
    ended = row(shop, sweep)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error["message"] == "None of 2 trials succeeded. Trial 0: Number 0 diverged."


def test_values_that_do_not_fit_together_fail_their_trial_alone(small_shop: Shop) -> None:
    """A transformer's heads divide its width, or not."""
    shop = small_shop
    dataset = shop.upload("text-classification", texts(40)).id
    space = {
        "task.architecture.width": {"type": "choice", "choices": [8, 12]},
        "task.architecture.heads": {"type": "choice", "choices": [4, 8]},
    }
    request = {
        "task": {
            "name": "text-classification",
            "architecture": {"name": "transformer", "width": 8, "heads": 2},
        }
    }
    sweep = search(
        shop,
        dataset=dataset,
        task="text-classification",
        request=request,
        space=space,
        sampler={"name": "grid"},
        trials=9,
        parallel=9,
    )
    tend(shop.database, sweep.id)
    found = {tuple((job.parameters or {}).values()): job for job in trials(shop, sweep)}
    assert len(found) == 4, "a grid has no more than its points"
    statuses = {(job.spec["task"].get("name"), job.status) for job in found.values()}
    failed = [job for job in found.values() if job.status == "failed"]
    assert len(failed) == 1, statuses
    assert failed[0].parameters == {"task.architecture.width": 12, "task.architecture.heads": 8}
    assert failed[0].error is not None
    assert failed[0].error["code"] == "invalid"
    assert "heads" in failed[0].error["message"]


def test_a_budget_that_is_used_up_stops_the_sweep(shop: Shop) -> None:
    sweep = search(shop, trials=5, parallel=2, budget_seconds=60.0)
    tend(shop.database, sweep.id)
    job = take(shop, 0, sweep)
    learn(shop, job, 0.5)
    assert row(shop, sweep).desired is None
    with shop.database.transaction() as session:
        mine = jobs.load(session, job.id)
        mine.started_at = now(session).replace(year=2000)
    assert shop.act(sweeps.due) == [sweep.id]
    tend(shop.database, sweep.id)
    first, second = trials(shop, sweep)
    assert (first.desired, second.status) == ("stop", "cancelled")
    shop.act(jobs.finish, job.id, job.lease_epoch, "succeeded")
    tend(shop.database, sweep.id)
    ended = row(shop, sweep)
    assert (ended.status, ended.made) == ("succeeded", 2)


def test_a_stopped_sweep_keeps_the_best_so_far(shop: Shop) -> None:
    sweep = search(shop, parallel=3)
    tend(shop.database, sweep.id)
    first, running = take(shop, 0, sweep), take(shop, 1, sweep)
    done(shop, first, 0.7)
    learn(shop, running, 0.6)
    shop.act(sweeps.stop, shop.project, sweep.id)
    assert sweeps.shown_status(row(shop, sweep)) == "stopping"
    tend(shop.database, sweep.id)
    assert row(shop, sweep).status == "running", "a trial is still at work"
    shop.act(jobs.finish, running.id, running.lease_epoch, "succeeded")
    tend(shop.database, sweep.id)
    ended = row(shop, sweep)
    assert (ended.status, ended.made) == ("succeeded", 3)
    assert ended.best is not None
    assert ended.best["trial"] == 0
    with pytest.raises(Conflict):
        shop.act(sweeps.stop, shop.project, sweep.id)


def test_a_cancelled_sweep_makes_no_model_and_no_more_trials(shop: Shop) -> None:
    sweep = search(shop)
    tend(shop.database, sweep.id)
    running = take(shop, 0, sweep)
    learn(shop, running, 0.9)
    shop.act(sweeps.cancel, shop.project, sweep.id)
    assert sweeps.shown_status(row(shop, sweep)) == "cancelling"
    shop.act(jobs.finish, running.id, running.lease_epoch, "cancelled")
    tend(shop.database, sweep.id)
    ended = row(shop, sweep)
    assert (ended.status, ended.made, ended.model_id) == ("cancelled", 2, None)
    assert {job.status for job in trials(shop, sweep)} == {"cancelled"}
    assert shop.act(models.page, shop.project).rows == []
    shop.act(sweeps.delete, shop.project, sweep.id)
    assert trials(shop, sweep) == []


def test_a_data_set_and_a_base_stay_while_a_sweep_needs_them(shop: Shop) -> None:
    dataset = shop.upload(TASK, rows(60))
    job = shop.claimed(shop.submit(dataset))
    done(shop, job, 0.5)
    base = shop.best(job).id
    sweep = search(shop, dataset=dataset.id, base_checkpoint_id=base)
    shop.act(models.delete, shop.project, "toys")
    shop.act(jobs.delete, shop.project, job.id)
    assert shop.act(checkpoints.load, base).id == base
    with pytest.raises(Conflict, match=sweep.id):
        shop.act(datasets.delete, shop.project, sweep.dataset_id)
    shop.act(sweeps.cancel, shop.project, sweep.id)
    shop.act(datasets.delete, shop.project, sweep.dataset_id)
    assert row(shop, sweep).dataset_id is None
    with shop.database.transaction() as session:
        checkpoints.discard(session, Checkpoint.job_id.is_(None))
    with pytest.raises(NotFound):
        shop.act(checkpoints.load, base)


def test_the_reconciler_has_a_process_look_after_due_sweeps(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    class Done:
        def is_alive(self) -> bool:
            return False

        def close(self) -> None: ...

    def fork(name: str, target: Any, *given: Any) -> Done:
        started.append(given)
        target(*given)
        return Done()

    monkeypatch.setattr(keeper.runs, "fork", fork)
    sweep = search(small_shop)
    reconciler = Reconciler(small_shop.settings, small_shop.database)
    reconciler.look()
    assert [ids for _, ids in started] == [[sweep.id]]
    assert len(trials(small_shop, sweep)) == 2
    reconciler.look()
    Keeper(small_shop.settings, small_shop.database).look()
    assert len(started) == 1


def test_a_worker_process_looks_after_a_sweep_to_its_end(small_shop: Shop) -> None:
    """By processes that it forks, one for each look; on its own, the sweep is never finished."""
    sweep = search(small_shop, trials=3, parallel=2, sampler={"name": "random"})
    worker = Worker(small_shop)
    try:
        for number in range(3):
            until(lambda n=number: ended_trials(small_shop, sweep) > n, f"trial {number}", worker)
        until(lambda: row(small_shop, sweep).status != "running", "the sweep ends", worker)
    finally:
        worker.end()
    ended = row(small_shop, sweep)
    assert (ended.status, ended.made) == ("succeeded", 3)
    assert small_shop.act(models.resolve, small_shop.project, "found").ref == "found@1"
