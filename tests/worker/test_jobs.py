"""One job after another, run by the trainer's own code on real databases."""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import SafetensorError
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

import worker.checkpoints
import worker.desk
import worker.jobs
import worker.materials
import worker.outages
import worker.report
from models.base import Batch, NotTransferable, Supervised
from models.parts.training import Transfer
from store import blobs, datasets, events, jobs, logs, metrics, models
from store import checkpoints as stored
from store.session import Database, connect
from store.tables import Job
from tasks.parts.problems import Invalid, Problem
from tasks.trained import save_weights
from tests.worker.shop import Crash, Orders, Shop, crash, pairs, rows, texts
from worker.desk import Desk
from worker.encoded import save_columns
from worker.materials import Materials
from worker.trainer import Exit

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.2}
SHORT = {"epochs": 4, "batch_size": 16}
ALWAYS: dict[str, Any] = {"checkpoint_seconds": 0.0, "checkpoint_share": 1.0}


def small_job(shop: Shop, **options: Any) -> Job:
    return shop.submit(shop.upload(TABLE, rows()), SMALL, SHORT, **options)


# What becomes of a job


def test_a_training_makes_a_version_of_a_model(shop: Shop) -> None:
    job = small_job(shop)
    assert shop.train(job) is Exit.DONE
    job = shop.job(job)
    assert (job.status, jobs.shown_model(job)) == ("succeeded", "toys@1"), job.error
    assert set(job.metrics) == {"train", "validation", "gap", "test"}
    ((objective, gap),) = job.metrics["gap"].items()
    assert gap == job.metrics["train"][objective] - job.metrics["validation"][objective]
    assert job.metrics["validation"]["accuracy"] == shop.best(job).value
    assert job.metrics["test"]["accuracy"] > 0.5
    assert (job.progress["percent"], job.progress["eta_seconds"]) == (100, 0)
    served = shop.act(models.resolve, shop.project, "toys").checkpoint
    assert served.id == shop.best(job).id


def test_curves_and_logs_tell_how_it_went(shop: Shop) -> None:
    job = small_job(shop)
    shop.train(job)
    curves = shop.act(metrics.curve, job.id)
    assert [epoch for _, epoch, _ in curves["validation/accuracy"]] == [1, 2, 3, 4]
    assert len(curves["train/loss"]) == shop.job(job).progress["steps"]
    lines = [row.line for row in shop.act(logs.page, job.id).rows]
    assert lines[0].startswith("training mlp on 120 examples, 4 epochs of 8 steps, on cpu")
    assert lines[1].startswith("epoch 1/4: train epoch loss 0.")
    assert "validation accuracy 0." in lines[1]
    assert lines[1].endswith("(best so far)")


def test_the_test_split_is_scored_with_the_best_weights_and_not_the_last(small_shop: Shop) -> None:
    dataset = small_shop.upload(TABLE, rows(noise=1.5))
    absurd = {"name": "sgd", "learning_rate": 5.0, "momentum": 0.9}
    training = {"epochs": 12, "batch_size": 16, "optimizer": absurd, "clipping": {"norm": 1.0}}
    job = small_shop.submit(dataset, SMALL, training)
    small_shop.train(job)
    best, last = small_shop.best(job), small_shop.last(job)
    assert best.weights_blob != last.weights_blob, "the toy is too easy: its last epoch is its best"
    again = small_shop.act(
        jobs.create,
        small_shop.project,
        kind="evaluate",
        name="again",
        dataset_id=dataset.id,
        task=TABLE,
        spec=best.spec,
        request={"split": "test"},
        queue="cpu",
        base_checkpoint_id=best.id,
    )
    small_shop.train(again)
    assert small_shop.job(again).metrics["test"] == small_shop.job(job).metrics["test"]


def test_an_evaluation_tells_every_metric_and_per_class(small_shop: Shop) -> None:
    job = small_job(small_shop)
    small_shop.train(job)
    other = small_shop.upload(TABLE, rows(seed=5), name="fresh")
    evaluation = small_shop.act(
        jobs.create,
        small_shop.project,
        kind="evaluate",
        name="how good",
        dataset_id=other.id,
        task=TABLE,
        spec=job.spec,
        request={"split": "validation"},
        queue="cpu",
        base_checkpoint_id=small_shop.best(job).id,
    )
    assert small_shop.train(evaluation) is Exit.DONE
    found = small_shop.job(evaluation)
    assert found.status == "succeeded", found.error
    assert found.result is not None
    assert found.result["accuracy"] == found.metrics["validation"]["accuracy"]
    assert len(found.result) > len(found.metrics["validation"])
    assert found.model_version is None


def test_an_evaluation_on_a_split_that_is_not_there_says_which_are(small_shop: Shop) -> None:
    job = small_job(small_shop)
    small_shop.train(job)
    evaluation = small_shop.act(
        jobs.create,
        small_shop.project,
        kind="evaluate",
        name="how good",
        dataset_id=job.dataset_id,
        task=TABLE,
        spec=job.spec,
        request={"split": "holdout"},
        queue="cpu",
        base_checkpoint_id=small_shop.best(job).id,
    )
    small_shop.train(evaluation)
    error = small_shop.job(evaluation).error or {}
    assert error["code"] == "invalid_data"
    assert "holdout" in error["message"]
    assert "validation" in error["message"]


def test_every_checkpoint_can_be_read_alone(small_shop: Shop) -> None:
    job = small_job(small_shop)
    small_shop.train(job, **ALWAYS)
    best = small_shop.best(job)
    assert best.spec == job.spec
    assert "head.weight" in small_shop.weights(best)
    assert b"labels" in b"".join(blobs.read(small_shop.database, best.codec_blob))


# Interrupted


@pytest.mark.parametrize("after", [0, 3, 14])
def test_a_drained_training_ends_with_the_same_weights(small_shop: Shop, after: int) -> None:
    dataset = small_shop.upload(TABLE, rows())
    alone = small_shop.submit(dataset, SMALL, SHORT)
    small_shop.train(alone)
    moved = small_shop.submit(dataset, SMALL, SHORT)
    for _ in range(2):
        small_shop.train(moved, Orders("drain", after))
        assert (small_shop.job(moved).status, small_shop.job(moved).attempt) == ("queued", 0)
    small_shop.train(moved)
    one, other = small_shop.job(alone), small_shop.job(moved)
    assert other.status == "succeeded"
    assert small_shop.last(moved).weights_blob == small_shop.last(alone).weights_blob
    assert small_shop.last(moved).state_blob == small_shop.last(alone).state_blob
    assert small_shop.best(moved).weights_blob == small_shop.best(alone).weights_blob
    assert one.metrics == other.metrics
    assert small_shop.act(metrics.curve, alone.id) == small_shop.act(metrics.curve, moved.id)


def test_a_training_interrupted_between_any_two_checkpoints_keeps_its_best(shop: Shop) -> None:
    """The run is lost after `after` steps, with whatever was published until then."""
    dataset = shop.upload(TABLE, rows())
    alone = shop.submit(dataset, SMALL, SHORT)
    shop.train(alone)
    lost = shop.submit(dataset, SMALL, SHORT)
    for after in (5, 9, 20):
        with pytest.raises(KeyboardInterrupt):
            shop.train(lost, Crash(after), **ALWAYS)
        shop.lose(lost)
    assert shop.last(lost).step > 0
    shop.train(lost)
    assert shop.last(lost).weights_blob == shop.last(alone).weights_blob
    assert shop.best(lost).weights_blob == shop.best(alone).weights_blob
    assert shop.act(metrics.curve, alone.id) == shop.act(metrics.curve, lost.id)


def test_a_paused_training_waits_and_goes_on_when_it_is_resumed(small_shop: Shop) -> None:
    job = small_job(small_shop)
    claimed = small_shop.claimed(job)
    small_shop.act(jobs.pause, small_shop.project, job.id)
    small_shop.work(claimed, Orders("pause", 5))
    assert small_shop.job(job).status == "paused"
    assert small_shop.last(job).step == 6
    small_shop.act(jobs.resume, small_shop.project, job.id)
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"


def test_a_cancelled_training_leaves_nothing(shop: Shop) -> None:
    job = small_job(shop)
    shop.train(job, Orders("cancel", 12), **ALWAYS)
    assert (shop.job(job).status, shop.job(job).model_version) == ("cancelled", None)
    assert shop.act(stored.page, job.id) == []


@pytest.mark.parametrize("after", [3, 12])
def test_a_stopped_training_keeps_the_best_it_has(small_shop: Shop, after: int) -> None:
    job = small_job(small_shop)
    small_shop.train(job, Orders("stop", after))
    found = small_shop.job(job)
    assert (found.status, found.model_version) == ("succeeded", 1), found.error
    assert small_shop.best(job).step == min(after + 1, 8)
    assert {"validation", "test"} <= set(found.metrics)


def test_a_budget_stops_a_training_over_all_of_its_runs(small_shop: Shop) -> None:
    long = {"epochs": 100_000, "batch_size": 16}
    job = small_shop.submit(small_shop.upload(TABLE, rows()), SMALL, long, budget_seconds=1.5)
    small_shop.train(job, Orders("drain", 3))
    before = small_shop.last(job).state["seconds"]
    assert 0 < before < 1.5
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"
    assert 1.5 <= small_shop.last(job).state["seconds"] < 5
    lines = [row.line for row in small_shop.act(logs.page, job.id, 0, 100_000).rows]
    assert "the budget of 1.5 seconds is used up" in lines


def test_a_finished_training_that_could_not_say_so_only_says_so(small_shop: Shop) -> None:
    """The run is lost between its last checkpoint and its end."""
    job = small_job(small_shop)
    with patch.object(Desk, "finish", crash), pytest.raises(KeyboardInterrupt):
        small_shop.train(job)
    small_shop.lose(job)
    weights = small_shop.last(job).weights_blob
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"
    assert small_shop.last(job).weights_blob == weights
    assert len(small_shop.act(metrics.curve, job.id)["validation/accuracy"]) == 4


def test_whoever_lost_the_job_writes_nothing_more(shop: Shop) -> None:
    job = small_job(shop)
    claimed = shop.claimed(job)
    shop.lose(job)
    assert shop.work(claimed) is Exit.FENCED
    assert shop.act(metrics.curve, job.id) == {}
    shop.train(job)
    assert shop.job(job).status == "succeeded"


# Started from what others learned


def test_a_transfer_keeps_the_backbone_of_its_base(small_shop: Shop) -> None:
    base = small_job(small_shop)
    small_shop.train(base)
    frozen = Transfer(trainable_blocks=0)
    job = small_shop.submit(
        small_shop.upload(TABLE, rows(seed=3), name="other"),
        training=SHORT,
        transfer=frozen,
        base=small_shop.best(base),
    )
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded", small_shop.job(job).error
    old, new = small_shop.weights(small_shop.best(base)), small_shop.weights(small_shop.last(job))
    learned = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name for name in old if name.startswith("backbone.")}.isdisjoint(learned)
    assert {"head.weight", "head.bias"} <= learned


def test_documents_are_added_to_a_search_without_training(small_shop: Shop) -> None:
    first = small_shop.submit(small_shop.upload("search", pairs()), training=SHORT)
    small_shop.train(first)
    base = small_shop.best(first)
    more = "id,text\nnew,The lighthouse of zanzibar.\nother,A windmill.\n"
    dataset = small_shop.upload("search", more)
    asked = small_shop.spec(dataset, None, None, Transfer(), base)
    task = asked.task.model_copy(update={"only_documents": True})
    spec = asked.model_copy(update={"task": task}).model_dump(mode="json")
    job = small_shop.submit(dataset, transfer=Transfer(), base=base, spec=spec)
    small_shop.train(job)
    done = small_shop.job(job)
    assert (done.status, jobs.shown_model(done)) == ("succeeded", "toys@2"), done.error
    before, after = small_shop.trained(base), small_shop.trained(small_shop.best(job))
    old, new = before.learner.state_dict(), after.learner.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("backbone."))
    assert torch.equal(new["share"], old["share"])
    asked_for = after.codec.read_inputs([{"query": "zanzibar lighthouse"}, {"query": "house 6"}])
    found = [answer.hits[0] for answer in after.predict(asked_for)]
    assert found[0].id == "new"
    assert found[1].text == before.predict(asked_for)[1].hits[0].text


def test_a_text_classifier_is_a_base_for_a_search(small_shop: Shop) -> None:
    first = small_shop.submit(
        small_shop.upload("text-classification", texts()), {"name": "bag-of-embeddings"}, SHORT
    )
    small_shop.train(first)
    base = small_shop.best(first)
    job = small_shop.submit(
        small_shop.upload("search", pairs()), training=SHORT, transfer=Transfer(), base=base
    )
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded", small_shop.job(job).error
    vocabularies = [small_shop.trained(c).codec.vocabulary for c in (base, small_shop.best(job))]
    assert vocabularies[0] == vocabularies[1]


def test_a_transfer_that_is_interrupted_does_not_start_from_its_base_again(
    small_shop: Shop,
) -> None:
    base = small_job(small_shop)
    small_shop.train(base)
    dataset = small_shop.upload(TABLE, rows(seed=3), name="other")
    alone, moved = (
        small_shop.submit(dataset, training=SHORT, transfer=Transfer(), base=small_shop.best(base))
        for _ in range(2)
    )
    small_shop.train(alone)
    small_shop.train(moved, Orders("drain", 9))
    small_shop.train(moved)
    assert small_shop.last(moved).weights_blob == small_shop.last(alone).weights_blob
    lines = [row.line for row in small_shop.act(logs.page, moved.id).rows]
    assert any(line.startswith("going on at step 8 with mlp") for line in lines)


def test_a_training_goes_on_from_another_jobs_checkpoint(shop: Shop) -> None:
    first = small_job(shop)
    shop.train(first)
    dataset = shop.act(datasets.get, shop.project, first.dataset_id)
    longer = {**SHORT, "epochs": 6}
    job = shop.submit(dataset, SMALL, longer, resume_checkpoint_id=shop.last(first).id)
    shop.train(job)
    found = shop.job(job)
    assert found.status == "succeeded", found.error
    assert shop.last(job).epoch == 6
    curve = shop.act(metrics.curve, job.id)["validation/accuracy"]
    assert [epoch for _, epoch, _ in curve] == [5, 6]
    best = max(shop.best(first).value or 0, *(value for _, _, value in curve))
    assert shop.best(job).value == best


# Failures, in one sentence


def test_a_training_that_diverges_says_what_to_change(small_shop: Shop) -> None:
    numbers = rows().replace("high", "1e6").replace("low", "-1e6")
    absurd = {"optimizer": {"name": "sgd", "learning_rate": 100.0, "momentum": 0.99}, "epochs": 30}
    deep = {"name": "mlp", "layers": 6, "norm": "none", "skip": False}
    job = small_shop.submit(small_shop.upload("tabular-regression", numbers), deep, absurd)
    assert small_shop.train(job) is Exit.DONE
    error = failed(small_shop, job, "diverged")
    assert error["message"].startswith("The loss became ")
    assert "lower the learning rate" in error["message"]
    assert "Traceback" in error["traceback"]


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (MemoryError(), "out_of_memory", "choose a smaller architecture"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "ran out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "out_of_memory",
            "ran out of memory",
        ),
        (
            Invalid(Problem(("file", "line", 3), "not a number", "x")),
            "invalid_data",
            "not a number",
        ),
        (
            NotTransferable("the base has no backbone"),
            "not_transferable",
            "The base has no backbone.",
        ),
        (KeyError("secret"), "internal", "failed unexpectedly (KeyError); the traceback"),
    ],
)
def test_a_failure_is_one_sentence_with_the_traceback_beside_it(
    small_shop: Shop, raised: Exception, code: str, says: str
) -> None:
    job = small_job(small_shop)
    with patch.object(worker.jobs, "plan_of", side_effect=raised):
        assert small_shop.train(job) is Exit.DONE
    error = failed(small_shop, job, code)
    assert says in error["message"]
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    assert type(raised).__name__ in error["traceback"]


def test_a_data_set_that_was_deleted_meanwhile_is_named(small_shop: Shop) -> None:
    job = small_job(small_shop)
    with small_shop.database.transaction() as session:
        session.execute(update(Job).values(dataset_id=None))
    small_shop.train(job)
    assert "dataset" in failed(small_shop, job, "not_found")["message"]


def failed(shop: Shop, job: Job, code: str) -> dict[str, Any]:
    found = shop.job(job)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["code"] == code, found.error
    return found.error


# Memory that runs out

PLAIN = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.0, "norm": "none"}


def fits(examples: int) -> Any:
    """A device with memory for so many examples at a time."""
    loss = Supervised.loss

    def limited(learner: Supervised, batch: Batch) -> torch.Tensor:
        if len(batch) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(learner, batch)

    return patch.object(Supervised, "loss", limited)


def worked_off(shop: Shop, job: Job) -> int:
    """Run a job until it has ended; how many runs it took."""
    runs = 0
    while shop.job(job).status == "queued":
        assert shop.train(job, **ALWAYS) is Exit.DONE
        runs += 1
    return runs


def test_a_training_out_of_memory_goes_on_with_batches_in_pieces(shop: Shop) -> None:
    dataset = shop.upload(TABLE, rows())
    roomy, tight = (shop.submit(dataset, PLAIN, SHORT) for _ in range(2))
    assert worked_off(shop, roomy) == 1
    with fits(5):
        assert worked_off(shop, tight) == 3, "16 examples, then 8, then 4 at a time"
    found = shop.job(tight)
    assert (found.status, found.attempt) == ("succeeded", 1), found.error
    assert found.spec["training"]["micro_batches"] == 4
    assert found.spec["training"]["batch_size"] == SHORT["batch_size"]
    one, other = shop.weights(shop.last(roomy)), shop.weights(shop.last(tight))
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    told = [e.data for e in shop.act(events.page, tight.id).rows if "reason" in e.data]
    assert [event["reason"]["code"] for event in told] == ["out_of_memory"] * 2
    assert told[-1]["reason"]["message"] == (
        "cpu ran out of memory: each batch of 16 is now learned from in 4 pieces, whose gradients are "
        "accumulated."
    )
    lines = [row.line for row in shop.act(logs.page, tight.id).rows]
    assert any("each batch in 4 pieces" in line for line in lines)


def test_memory_that_runs_out_late_costs_only_what_came_after_the_last_checkpoint(
    small_shop: Shop,
) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, SHORT)
    small_shop.train(job, Orders("drain", 12), **ALWAYS)
    step = small_shop.last(job).step
    assert step > 8
    with fits(8):
        assert worked_off(small_shop, job) == 2
    lines = [row.line for row in small_shop.act(logs.page, job.id).rows]
    assert sum(line.startswith(f"going on at step {step} ") for line in lines) == 2
    assert len(small_shop.act(metrics.curve, job.id)["validation/accuracy"]) == 4


def test_a_training_that_fits_in_no_pieces_fails_and_says_so(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, SHORT)
    with fits(0):
        assert worked_off(small_shop, job) == 5
    error = failed(small_shop, job, "out_of_memory")
    assert "batches in smaller pieces would not help" in error["message"]


def test_a_split_is_judged_in_smaller_batches_when_memory_runs_out(small_shop: Shop) -> None:
    job = small_job(small_shop)
    predict = Supervised.predict
    sizes = []

    def limited(learner: Supervised, *inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs[0]))
        if sizes[-1] > 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict(learner, *inputs)

    with patch.object(Supervised, "predict", limited):
        assert worked_off(small_shop, job) == 1
    assert small_shop.job(job).status == "succeeded"
    assert {40, 20, 10, 5} <= set(sizes)


# A full disk


def test_a_training_outlives_a_full_disk(small_shop: Shop) -> None:
    """What checkpoints write has no room at first, and has it again before anybody loses patience."""
    dataset = small_shop.upload(TABLE, rows())
    alone, troubled = (small_shop.submit(dataset, SMALL, SHORT) for _ in range(2))
    small_shop.train(alone)
    save, refused = save_weights, 0

    def crowded(weights: Any, path: Path) -> None:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(weights, path)

    with (
        patch.object(worker.checkpoints, "save_weights", crowded),
        patch.object(worker.outages, "_PAUSE_SECONDS", 0.0),
    ):
        assert small_shop.train(troubled, **ALWAYS) is Exit.DONE
    assert refused == 3
    assert small_shop.job(troubled).status == "succeeded"
    assert small_shop.last(troubled).weights_blob == small_shop.last(alone).weights_blob


def test_a_disk_that_stays_full_ends_the_run_and_not_the_job(small_shop: Shop) -> None:
    job = small_job(small_shop)
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch.object(Materials, "split", side_effect=full):
        assert small_shop.train(job) is Exit.DISK_FULL
    assert small_shop.job(job).status == "running"


# Outages of the database


def test_an_outage_while_training_costs_neither_the_job_nor_its_curve(shop: Shop) -> None:
    """The database refuses a third of all transactions."""
    dataset = shop.upload(TABLE, rows())
    alone, troubled = (shop.submit(dataset, SMALL, SHORT) for _ in range(2))
    shop.train(alone)
    draw = random.Random(7)
    refused = 0

    def refuse(connection: Any) -> None:
        nonlocal refused
        if draw.random() < 1 / 3 and connection.get_execution_options().get("read_only") is None:
            refused += 1
            raise OperationalError("BEGIN", None, Exception("the database is away"))

    claimed = shop.claimed(troubled)
    with (
        patch.object(worker.outages, "_PAUSE_SECONDS", 0.0),
        patch.object(worker.report, "WRITE_SECONDS", 0.0),
        patch.object(worker.report, "OUTAGE_SECONDS", 0.0),
        patch.object(worker.desk, "connect", lambda url: troubled_database(url, refuse)),
    ):
        assert shop.work(claimed) is Exit.DONE
    assert refused > 3
    assert shop.job(troubled).status == "succeeded"
    assert shop.last(troubled).weights_blob == shop.last(alone).weights_blob
    assert shop.act(metrics.curve, alone.id) == shop.act(metrics.curve, troubled.id)


def troubled_database(url: str, refuse: Callable[[Any], None]) -> Database:
    database = connect(url)
    event.listen(database.engine, "begin", refuse, insert=True)
    return database


def test_a_database_that_stays_away_ends_the_run_and_not_the_job(small_shop: Shop) -> None:
    job = small_job(small_shop)
    away = OperationalError("SELECT", None, Exception("the database is away"))
    with (
        patch.object(worker.outages, "PATIENCE_SECONDS", 0.0),
        patch.object(Materials, "dataset", side_effect=away),
    ):
        assert small_shop.train(job) is Exit.UNREACHABLE
    assert small_shop.job(job).status == "running"


# Other tasks


@pytest.mark.parametrize("architecture", ["random-forest", "linear"])
def test_a_training_without_epochs_of_its_own_is_resumed_too(
    small_shop: Shop, architecture: str
) -> None:
    dataset = small_shop.upload(TABLE, rows())
    alone, moved = (small_shop.submit(dataset, {"name": architecture}) for _ in range(2))
    small_shop.train(alone)
    small_shop.train(moved, Orders("drain", 4))
    small_shop.train(moved)
    assert small_shop.job(moved).status == "succeeded", small_shop.job(moved).error
    assert small_shop.last(moved).weights_blob == small_shop.last(alone).weights_blob


def test_texts_are_trained_on_and_encoded_once(small_shop: Shop) -> None:
    dataset = small_shop.upload("text-classification", texts())
    small = {"name": "bag-of-embeddings"}
    for place in range(2):
        with patch.object(worker.materials, "save_columns", wraps=save_columns) as saved:
            job = small_shop.submit(dataset, small, {"epochs": 2})
            small_shop.train(job)
        assert small_shop.job(job).status == "succeeded", small_shop.job(job).error
        assert saved.call_count == (0 if place else 3)
