"""Profiles of real trainings: what is recorded, what is kept, and what is not disturbed by it."""

import gzip
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from sqlalchemy.exc import OperationalError
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

import worker.outages
import worker.profiles
from models.base import Batch
from store import artifacts, blobs, checkpoints, events, jobs, logs
from store.errors import NotFound
from store.tables import Job, JobArtifact, JobEvent
from tests.worker.mortal import Death, run
from tests.worker.shop import Crash, Orders, Shop, rows, shop_in
from worker.profiles import TABLE, TRACE
from worker.trainer import Exit

TASK = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.2}
SHORT = {"epochs": 4, "batch_size": 16}
"""32 steps."""
ALWAYS: dict[str, Any] = {"checkpoint_seconds": 0.0, "checkpoint_share": 1.0}


def window(from_step: int = 10, steps: int = 3, **more: bool) -> dict[str, Any]:
    return {"from_step": from_step, "steps": steps, "memory": False, "shapes": False, **more}


def submit(shop: Shop, profile: dict[str, Any] | None, **options: Any) -> Job:
    return shop.submit(shop.upload(TASK, rows()), SMALL, SHORT, profile=profile, **options)


def kept(shop: Shop, job: Job) -> dict[str, JobArtifact]:
    rows = shop.act(artifacts.page, job.id).rows
    return {row.name: row for row in rows if not row.name.startswith("samples-")}


def content(shop: Shop, job: Job, name: str) -> bytes:
    row = shop.act(artifacts.get, job.id, name)
    return b"".join(blobs.read(shop.database, row.blob_id))


def trace(shop: Shop, job: Job) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(content(shop, job, TRACE)))[
        "traceEvents"
    ]
    return found


def table(shop: Shop, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content(shop, job, TABLE))
    return found


def steps(shop: Shop, job: Job) -> list[str]:
    """The steps in the trace."""
    names = [event["name"] for event in trace(shop, job) if event.get("cat") == "user_annotation"]
    return [name for name in names if name.startswith("ProfilerStep#")]


def told(shop: Shop, job: Job) -> list[JobEvent]:
    """The events about its profile."""
    found = shop.act(events.page, job.id, 0, 1_000).rows
    of_samples = {e.seq for e in found if e.data.get("name", "").startswith("samples-")}
    kinds = ("profile", "artifact")
    return [e for e in found if e.type in kinds and e.seq not in of_samples]


def said(shop: Shop, job: Job) -> str:
    return "\n".join(f"{row.level} {row.line}" for row in shop.act(logs.page, job.id, 0, 1000).rows)


class Learned(NamedTuple):
    """All that a profile must not change."""

    best: str
    last: str
    memory: str | None
    metrics: dict[str, Any]


def learned(shop: Shop, job: Job) -> Learned:
    row, best, last = shop.job(job), shop.best(job), shop.last(job)
    assert row.status == "succeeded", row.error
    return Learned(best.weights_blob, last.weights_blob, last.state_blob, row.metrics)


@pytest.fixture(scope="module")
def alone(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """What a training without a profile learns."""
    with shop_in(tmp_path_factory.mktemp("alone"), _sqlite_template) as shop:
        job = submit(shop, None)
        shop.train(job)
        assert kept(shop, job) == {}
        return learned(shop, job)


# What is recorded


def test_a_profiled_training_learns_the_same_bits(shop: Shop, alone: Learned) -> None:
    job = submit(shop, window(memory=True, shapes=True))
    assert not run(shop, job)  # in a process such as workers start
    assert learned(shop, job) == alone
    assert set(kept(shop, job)) == {TRACE, TABLE}


def test_the_trace_shows_the_steps_asked_for_and_what_the_optimizer_did_in_each(
    small_shop: Shop,
) -> None:
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    found = trace(small_shop, job)
    marks = [event for event in found if event["name"].startswith("ProfilerStep#")]
    assert [event["name"] for event in marks] == [f"ProfilerStep#{n}" for n in (10, 11, 12)]
    for name in ("Optimizer.step#AdamW.step", "aten::addmm", "AddmmBackward0", "aten::dropout"):
        times = [event["ts"] for event in found if event["name"] == name]
        for mark in marks:
            assert any(mark["ts"] <= time <= mark["ts"] + mark["dur"] for time in times), name


def test_the_table_shows_where_the_time_went(small_shop: Shop) -> None:
    job = submit(small_shop, window(10, 3, memory=True))
    small_shop.train(job)
    found = table(small_shop, job)
    assert (found["from_step"], found["steps"], found["device"]) == (10, 3, "cpu")
    assert found["step_ms"] > 0
    shown = found["operators"]
    assert len(shown) == worker.profiles.OPERATORS
    assert found["left_out"] > 0
    assert shown == sorted(shown, key=lambda row: row["cpu_ms"], reverse=True)
    assert 0.5 < sum(row["cpu_share"] for row in shown) <= 1.001
    (optimizer,) = (row for row in shown if row["name"] == "Optimizer.step#AdamW.step")
    assert optimizer["calls"] == 3
    assert any(row["cpu_bytes"] > 0 for row in shown)
    assert any(row["name"] == "outside of operators" for row in shown)


def test_the_table_of_a_gpu_is_about_its_time() -> None:
    """Kernels have rows of their own, whose time counts with the operators that started them."""

    def row(key: str, cpu: int, device: int, kind: Any = DeviceType.CPU) -> Any:
        return SimpleNamespace(
            key=key,
            count=2,
            device_type=kind,
            cpu_time_total=4_000,
            self_cpu_time_total=cpu,
            self_device_time_total=device,
            self_cpu_memory_usage=0,
            self_device_memory_usage=512,
        )

    averages = [
        row("ProfilerStep*", 300, 0),
        row("aten::add", 500, 1_000),
        row("aten::mm", 200, 3_000),
        row("gemm", 0, 3_000, DeviceType.CUDA),
        row("ProfilerStep*", 0, 4_000, DeviceType.CUDA),
    ]
    profiler: Any = SimpleNamespace(key_averages=lambda: averages, profile_memory=True)
    found = worker.profiles.table(profiler, "cuda:0")
    assert (found["step_ms"], found["left_out"]) == (2.0, 0)
    names = [row["name"] for row in found["operators"]]
    assert names == ["aten::mm", "aten::add", "outside of operators"]
    assert found["operators"][0] == {
        "name": "aten::mm",
        "calls": 2,
        "device_ms": 3.0,
        "device_share": 0.75,
        "cpu_ms": 0.2,
        "cpu_share": 0.2,
        "cpu_bytes": 0,
        "device_bytes": 512,
    }


@pytest.mark.parametrize("wanted", [False, True])
def test_shapes_and_memory_are_recorded_when_asked_for(small_shop: Shop, wanted: bool) -> None:
    job = submit(small_shop, window(1, 1, memory=wanted, shapes=wanted))
    small_shop.train(job)
    found = trace(small_shop, job)
    assert any("Input Dims" in event.get("args", {}) for event in found) == wanted
    assert any(event["name"] == "[memory]" for event in found) == wanted
    assert ("cpu_bytes" in table(small_shop, job)["operators"][0]) == wanted


@pytest.mark.parametrize("from_step", [1, 2, 31])
def test_any_step_of_a_training_can_be_the_first(small_shop: Shop, from_step: int) -> None:
    job = submit(small_shop, window(from_step, 2))
    small_shop.train(job)
    assert steps(small_shop, job) == [f"ProfilerStep#{from_step + n}" for n in range(2)]


def test_a_forest_is_profiled_as_well(small_shop: Shop) -> None:
    forest = {"name": "random-forest", "trees": 20}
    dataset = small_shop.upload(TASK, rows())
    job = small_shop.submit(dataset, forest, profile=window(1, 1))
    small_shop.train(job)
    assert steps(small_shop, job) == ["ProfilerStep#1"]
    assert table(small_shop, job)["operators"]


def test_a_job_tells_when_its_profile_begins_and_when_it_is_there(small_shop: Shop) -> None:
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    begun, *made = told(small_shop, job)
    assert (begun.type, begun.data) == ("profile", {"from_step": 10, "steps": 3})
    files = kept(small_shop, job)
    assert [event.data for event in made] == [
        {"artifact": files[name].id, "name": name, "size_bytes": files[name].size}
        for name in (TABLE, TRACE)
    ]
    assert "info profiled steps 10 to 12: most time in " in said(small_shop, job)
    assert files[TRACE].size == len(content(small_shop, job, TRACE))


def test_after_the_window_the_learner_steps_by_itself(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = worker.profiles.Recording._step, []

    def counted(self: Any, batch: Batch, number: int) -> Tensor:
        seen.append(number + 1)
        return step(self, batch, number)

    monkeypatch.setattr(worker.profiles.Recording, "_step", counted)
    job = submit(small_shop, window(4, 2))
    small_shop.train(job)
    assert small_shop.job(job).progress["step"] == 32
    assert seen == [1, 2, 3, 4, 5]


# Runs that end early


def test_a_training_killed_in_the_window_loses_its_profile_and_nothing_else(
    small_shop: Shop, alone: Learned
) -> None:
    small_shop.settings = small_shop.settings.model_copy(update=ALWAYS)
    job = submit(small_shop, window(10, 5))
    assert run(small_shop, job, Death("between steps", 12, 0.0))
    assert [event.type for event in told(small_shop, job)] == ["profile"]
    assert not run(small_shop, job)
    assert learned(small_shop, job) == alone
    assert kept(small_shop, job) == {}
    assert [event.type for event in told(small_shop, job)] == ["profile"]
    assert "warning no profile: it was lost with a run before this one" in said(small_shop, job)


def test_steps_that_are_done_again_are_not_profiled_again(small_shop: Shop, alone: Learned) -> None:
    job = submit(small_shop, window(10, 3))
    with pytest.raises(KeyboardInterrupt):
        small_shop.train(job, Crash(after=20))
    before, files = told(small_shop, job), kept(small_shop, job)
    assert set(files) == {TRACE, TABLE}
    assert small_shop.act(checkpoints.last, job.id) is None
    small_shop.lose(job)
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert [event.seq for event in told(small_shop, job)] == [event.seq for event in before]
    assert "no profile" not in said(small_shop, job)


def test_a_run_that_is_told_to_end_in_the_window_keeps_what_it_has_seen(
    small_shop: Shop, alone: Learned
) -> None:
    job = submit(small_shop, window(4, 5))
    small_shop.train(job, Orders("drain", after=4))
    assert steps(small_shop, job) == ["ProfilerStep#4", "ProfilerStep#5"]
    assert table(small_shop, job)["steps"] == 2
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert len(steps(small_shop, job)) == 2


def test_a_run_that_fails_in_the_window_keeps_nothing_of_it(
    small_shop: Shop, alone: Learned
) -> None:
    job = submit(small_shop, window(4, 5))
    with pytest.raises(KeyboardInterrupt):
        small_shop.train(job, Crash(after=4))
    small_shop.lose(job)
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert kept(small_shop, job) == {}
    assert "it was lost with a run before this one" in said(small_shop, job)


def test_a_run_that_ends_before_the_window_leaves_it_to_the_next_one(
    small_shop: Shop, alone: Learned
) -> None:
    job = submit(small_shop, window(10, 3))
    small_shop.train(job, Orders("drain", after=4))
    assert "no profile: this run ends before step 10" in said(small_shop, job)
    small_shop.train(job)
    assert len(steps(small_shop, job)) == 3
    assert learned(small_shop, job) == alone


def test_a_run_that_ends_while_the_profiler_warms_up_ends_as_any_other(
    small_shop: Shop, alone: Learned
) -> None:
    job = submit(small_shop, window(6, 2))
    small_shop.train(job, Orders("drain", after=3))
    assert small_shop.last(job).step == 4
    assert "no profile: this run ends before step 6" in said(small_shop, job)
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert kept(small_shop, job) == {}


def test_a_window_that_the_end_cuts_short_shows_what_there_is(small_shop: Shop) -> None:
    job = submit(small_shop, window(31, 50))
    small_shop.train(job)
    assert steps(small_shop, job) == ["ProfilerStep#31", "ProfilerStep#32"]
    assert small_shop.job(job).status == "succeeded"


def test_a_window_beyond_the_end_is_told(small_shop: Shop) -> None:
    job = submit(small_shop, window(33, 3))
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"
    assert kept(small_shop, job) == {}
    line = "warning no profile: it was to begin at step 33, and there are 32\n"
    assert line in said(small_shop, job)


def test_a_window_that_lies_behind_is_told(small_shop: Shop) -> None:
    dataset = small_shop.upload(TASK, rows())
    first = small_shop.submit(dataset, SMALL, SHORT)
    small_shop.train(first)
    longer = SHORT | {"epochs": 5}
    last = small_shop.last(first).id
    job = small_shop.submit(
        dataset, SMALL, longer, profile=window(10, 3), resume_checkpoint_id=last
    )
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"
    assert "it was to begin at step 10, and 32 are done already" in said(small_shop, job)


# What goes wrong


@pytest.mark.parametrize(
    "method",
    ["prepare_trace", "start_trace", "stop_trace", "export_chrome_trace", "key_averages"],
)
def test_a_profiler_that_fails_costs_the_profile_alone(
    small_shop: Shop, alone: Learned, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(worker.profiles.profile, method, failing_after(method))
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert kept(small_shop, job) == {}
    assert said(small_shop, job).count("the profiler is broken") == 1


def test_a_profiler_that_cannot_be_stopped_lets_the_run_end(
    small_shop: Shop, alone: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.profiles.profile, "stop_trace", failing_after("stop_trace"))
    job = submit(small_shop, window(4, 5))
    small_shop.train(job, Orders("drain", after=4))
    assert small_shop.job(job).status == "queued"
    small_shop.train(job)
    assert learned(small_shop, job) == alone


def failing_after(method: str) -> Callable[..., None]:
    """A method of the profiler that does what it should, and fails."""
    real = getattr(worker.profiles.profile, method)

    def failing(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise RuntimeError("the profiler is broken")

    return failing


def test_a_trace_that_is_too_large_is_not_kept_but_its_table(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.profiles, "LARGEST_BYTES", 1_000)
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    assert set(kept(small_shop, job)) == {TABLE}
    assert "warning the trace is not kept: it has " in said(small_shop, job)


def test_no_step_waits_for_a_database_that_is_away_when_the_profile_begins(
    small_shop: Shop, alone: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.profiles.jobs, "note", away(times=1_000))
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    assert learned(small_shop, job) == alone
    assert kept(small_shop, job) == {}
    assert "no profile: the database was away" in said(small_shop, job)


def test_a_profile_waits_for_a_database_that_is_away_when_it_is_kept(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.outages, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(worker.profiles.artifacts, "add", away(2, worker.profiles.artifacts.add))
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    assert set(kept(small_shop, job)) == {TRACE, TABLE}


def away(times: int, then: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function of the store whose database does not answer so many times."""
    calls = count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) <= times:
            raise OperationalError("statement", {}, Exception("away"))
        assert then is not None
        return then(*arguments, **options)

    return call


def test_a_run_that_has_lost_its_lease_keeps_no_profile(
    small_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(small_shop, window(31, 2))
    write = worker.profiles.trace

    def too_late(*arguments: Any) -> Any:
        small_shop.lose(job)
        return write(*arguments)

    monkeypatch.setattr(worker.profiles, "trace", too_late)
    assert small_shop.train(job) is Exit.FENCED
    assert kept(small_shop, job) == {}


def test_nothing_is_left_on_the_workers_disk(small_shop: Shop) -> None:
    job = submit(small_shop, window(10, 3))
    small_shop.train(job)
    assert list(small_shop.settings.cache_dir.glob(".*")) == []


def test_a_deleted_job_takes_its_profile_with_it(shop: Shop) -> None:
    job = submit(shop, window(10, 3))
    shop.train(job)
    files = kept(shop, job)
    assert len(files) == 2
    shop.act(blobs.sweep, 0)
    assert content(shop, job, TRACE)
    shop.act(jobs.delete, shop.project, job.id)
    shop.act(blobs.sweep, 0)
    for row in files.values():
        with pytest.raises(NotFound):
            shop.act(blobs.size, row.blob_id)
