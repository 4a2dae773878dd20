"""Keys, data sets, curves, workers, repeated requests, ids, and the connection itself."""

import random
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from store import datasets, ids, jobs, keys, metrics, projects, replies, session, workers
from store.columns import storable
from store.errors import Conflict, NotFound
from store.session import Database, connect, keeps_wal_whole, now
from store.tables import ApiKey, Job, MetricBlock, Reply, Worker
from tests.conftest import opened
from tests.store.world import World

# Keys


def test_a_key_is_found_by_its_text_and_only_its_hash_is_kept(world: World) -> None:
    row, plain = world.act(keys.create, world.project, "laptop", ["train"])
    assert plain.startswith("my_")
    assert world.act(keys.find, plain).id == row.id
    assert world.act(keys.find, plain + "x") is None
    with world.database.transaction() as s:
        stored = s.execute(select(*ApiKey.__table__.columns)).one()
    assert plain not in str(stored)


def test_a_given_secret_becomes_a_key_once(world: World) -> None:
    made = [
        world.act(keys.create, world.project, "admin", ["admin"], secret="hush")[0] for _ in "ab"
    ]
    assert made[0].id == made[1].id
    assert made[0].prefix == ""
    assert world.act(keys.count) == 1


def test_an_expired_or_revoked_key_is_still_found(world: World) -> None:
    then = datetime.now(UTC) - timedelta(days=1)
    _, plain = world.act(keys.create, world.project, "old", [], expires_at=then)
    assert world.act(keys.find, plain).expires_at == then
    key = world.act(keys.revoke, world.act(keys.find, plain).id)
    assert world.act(keys.revoke, key.id).revoked_at == key.revoked_at
    with pytest.raises(NotFound):
        world.act(keys.revoke, "key_unknown")


def test_the_use_of_a_key_is_written_at_most_once_a_minute(world: World) -> None:
    key, _ = world.act(keys.create, world.project, "laptop", [])
    world.act(keys.touch, key.id)
    first = world.act(keys.get, key.id).last_used_at
    world.act(keys.touch, key.id)
    assert world.act(keys.get, key.id).last_used_at == first
    with world.database.transaction() as s:
        s.execute(update(ApiKey).values(last_used_at=first - timedelta(minutes=2)))
    world.act(keys.touch, key.id)
    assert world.act(keys.get, key.id).last_used_at >= first


def test_keys_are_paged(world: World) -> None:
    for name in "abc":
        world.act(keys.create, world.project, name, [])
    world.act(keys.create, world.other_project, "d", [])
    assert [key.name for key in world.act(keys.page).rows] == ["d", "c", "b", "a"]
    mine = world.act(keys.page, 2, None, world.project)
    assert ([key.name for key in mine.rows], mine.has_more) == (["c", "b"], True)


# Projects, data sets


def test_a_project_is_made_once(world: World) -> None:
    assert world.act(projects.ensure, "default").id == world.project
    assert world.act(projects.get, world.project).name == "default"
    assert [p.name for p in world.act(projects.page).rows] == ["other", "default"]
    with pytest.raises(NotFound, match="There is no project 'prj_x'"):
        world.act(projects.get, "prj_x")


def test_a_data_set_is_read_as_it_was_made(world: World) -> None:
    dataset = world.act(datasets.get, world.project, world.dataset)
    assert dataset.schema == {"columns": ["text", "label"]}
    assert (dataset.status, dataset.splits) == ("ready", {"train": 2, "test": 1})
    assert world.act(datasets.files, dataset.id) == {"train": world.blob, "test": world.blob}
    assert dataset.created_at.tzinfo is UTC


def test_data_sets_are_found_by_task(world: World) -> None:
    other = world.new_dataset(task="tabular-regression")
    page = world.act(datasets.page, world.project, task="tabular-regression")
    assert [row.id for row in page.rows] == [other.id]


def test_a_data_set_cannot_name_bytes_that_are_not_there(world: World) -> None:
    world.blob = "0" * 64
    with pytest.raises(IntegrityError):
        world.new_dataset()


# Curves


def curve_of(world: World, steps: int) -> Job:
    job = world.start()
    points = [(n, n // 10, {"train/loss": 1.0 / (n + 1)}) for n in range(steps)]
    every_tenth = [(n, n // 10, {"validation/accuracy": n / 100}) for n in range(9, steps, 10)]
    world.holder(jobs.record, job, points=points)
    world.holder(jobs.record, job, points=every_tenth)
    return job


def test_numbers_of_one_step_come_together(world: World) -> None:
    job = curve_of(world, 20)
    curve = world.act(metrics.curve, job.id)
    assert len(curve["train/loss"]) == 20
    assert curve["validation/accuracy"] == [(9, 0, 0.09), (19, 1, 0.19)]


def test_a_repeated_point_replaces_itself(world: World) -> None:
    job = world.start()
    for value in (1.0, 2.0):
        world.holder(jobs.record, job, points=[(5, 1, {"train/loss": value})])
    assert world.act(metrics.curve, job.id) == {"train/loss": [(5, 1, 2.0)]}


@pytest.mark.parametrize("points", [2, 3, 10, 99, 100, 1000])
def test_a_thinned_curve_is_even_and_keeps_its_ends(world: World, points: int) -> None:
    job = curve_of(world, 100)
    curve = world.act(metrics.curve, job.id, ["train/loss"], points)["train/loss"]
    steps = [step for step, _, _ in curve]
    assert len(steps) == min(points, 100)
    assert (steps[0], steps[-1]) == (0, 99)
    gaps = {after - before for before, after in pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1


def test_a_curve_of_one_point_can_be_thinned(world: World) -> None:
    job = curve_of(world, 1)
    assert world.act(metrics.curve, job.id, None, 1) == {"train/loss": [(0, 0, 1.0)]}


def test_names_that_are_not_there_have_no_curve(world: World) -> None:
    job = curve_of(world, 3)
    asked = ["train/loss", "unknown", 'a"b', "$", "'; DROP TABLE jobs", ""]
    assert set(world.act(metrics.curve, job.id, asked)) == {"train/loss"}


def test_numbers_that_are_not_finite_leave_a_gap(world: World) -> None:
    job = world.start()
    values = [1.0, float("nan"), float("inf"), 2.0]
    points = [(n, 0, {"loss": value}) for n, value in enumerate(values)]
    world.holder(jobs.record, job, points=points)
    assert world.act(metrics.curve, job.id) == {"loss": [(0, 0, 1.0), (3, 0, 2.0)]}


def test_steps_that_will_be_made_again_are_forgotten(world: World) -> None:
    job = curve_of(world, 20)
    world.act(metrics.truncate, job.id, 9)
    assert [step for step, _, _ in world.act(metrics.curve, job.id)["train/loss"]] == [*range(10)]


@pytest.mark.parametrize("seed", range(3))
def test_curves_hold_what_was_written_last_in_whatever_order(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Blocks that are full, that are begun, that others lie between; steps that are made again."""
    monkeypatch.setattr(metrics, "BLOCK_POINTS", 4)
    draw, job = random.Random(seed), world.start()
    expected: dict[str, dict[int, tuple[int, int, float]]] = {"a": {}, "b": {}}
    for _ in range(40):
        first = draw.randint(0, 40)
        if draw.random() < 0.25:
            world.act(metrics.truncate, job.id, first)
            for name in expected:
                expected[name] = {n: p for n, p in expected[name].items() if n <= first}
        else:
            name, steps = draw.choice("ab"), range(first, first + draw.choice([1, 3, 4, 9]))
            written = {step: (step, step // 10, draw.random()) for step in steps}
            points = [(step, epoch, {name: value}) for step, epoch, value in written.values()]
            world.holder(jobs.record, job, points=points)
            expected[name] |= written
        curves = {name: [found[n] for n in sorted(found)] for name, found in expected.items()}
        assert world.act(metrics.curve, job.id) == {n: c for n, c in curves.items() if c}


def test_a_long_curve_lies_in_few_rows(world: World) -> None:
    job = world.start()
    for first in range(0, 5_000, 125):
        points = [(n, 0, {"loss": 1.0}) for n in range(first, first + 125)]
        world.holder(jobs.record, job, points=points)
    with world.database.transaction(read_only=True) as session:
        rows = session.execute(select(func.count()).select_from(MetricBlock)).scalar_one()
    assert rows == 5


# Workers


FACTS = {"host": "h", "pid": 1, "device": "cpu", "device_name": "CPU", "memory_bytes": 1 << 40}


def test_a_worker_is_known_from_its_first_beat_to_its_last(world: World) -> None:
    for status in ("idle", "busy"):
        world.act(workers.beat, "w", **FACTS, queues=["cpu"], slots=1, status=status)
    (worker,) = world.act(workers.all)
    assert (worker.status, worker.memory_bytes) == ("busy", 1 << 40)
    world.act(workers.gone, "w")
    assert world.act(workers.all) == []


def test_free_slots_are_those_of_living_workers_less_running_jobs(world: World) -> None:
    for name, queues, status in [
        ("w", ["cpu"], "idle"),
        ("v", ["gpu", "cpu"], "idle"),
        ("leaving", ["cpu"], "draining"),
        ("silent", ["cpu"], "idle"),
    ]:
        world.act(workers.beat, name, **FACTS, queues=queues, slots=2, status=status)
    with world.database.transaction() as s:
        past = now(s) - timedelta(minutes=5)
        s.execute(update(Worker).where(Worker.id == "silent").values(last_seen_at=past))
    assert world.act(workers.free_slots) == 4
    assert world.act(workers.free_slots, queue="gpu") == 2
    world.start()
    assert world.act(workers.free_slots) == 3
    assert world.act(workers.free_slots, 600.0) == 5
    world.act(workers.sweep, 60.0)
    assert {worker.id for worker in world.act(workers.all)} == {"w", "v", "leaving"}


# Repeated requests


def test_a_repeated_request_gets_the_first_answer(world: World) -> None:
    assert world.act(replies.begin, world.project, "k", "same") is None
    world.act(replies.save, world.project, "k", 202, {"id": "job_1"})
    reply = world.act(replies.begin, world.project, "k", "same")
    assert (reply.status, reply.body) == (202, {"id": "job_1"})
    assert world.act(replies.begin, world.other_project, "k", "same") is None


def test_a_reply_tells_which_request_its_key_came_with(world: World) -> None:
    assert world.act(replies.find, world.project, "k") is None
    world.act(replies.begin, world.project, "k", "one")
    assert world.act(replies.begin, world.project, "k", "two").fingerprint == "one"
    assert world.act(replies.find, world.project, "k").fingerprint == "one"


def test_a_request_that_failed_may_be_repeated(world: World) -> None:
    def failing(s: Session) -> None:
        replies.begin(s, world.project, "k", "same")
        raise Conflict("no")

    with pytest.raises(Conflict):
        world.act(failing)
    assert world.act(replies.begin, world.project, "k", "same") is None


def test_the_same_request_sent_eight_times_at_once_is_done_once(world: World) -> None:
    done: list[bool] = []

    def request() -> None:
        with world.database.transaction() as s:
            reply = replies.begin(s, world.project, "k", "same")
            if reply is None:
                replies.save(s, world.project, "k", 201, {})
            done.append(reply is None)

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False] * 7 + [True]


def test_after_a_day_a_reply_counts_no_more_and_is_forgotten(world: World) -> None:
    for age, counts, lasts in ((-30, True, True), (30, False, True), (90, False, False)):
        with world.database.transaction() as s:
            s.execute(delete(Reply))
            replies.begin(s, world.project, "k", "one")
            reply = s.get_one(Reply, (world.project, "k"))
            reply.created_at -= timedelta(seconds=replies.KEPT_SECONDS + age)
        assert (world.act(replies.find, world.project, "k") is not None) is counts
        world.act(replies.sweep)
        with world.database.transaction() as s:
            assert (s.get(Reply, (world.project, "k")) is not None) is lasts
        assert (world.act(replies.begin, world.project, "k", "two") is not None) is counts


# Ids, values


def test_ids_sort_by_time_and_never_meet() -> None:
    made = [ids.new("job") for _ in range(2000)]
    assert len(set(made)) == 2000
    assert {len(one) for one in made} == {30}
    assert [one[4:15] for one in made] == sorted(one[4:15] for one in made)


def test_only_what_json_cannot_hold_is_changed() -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    value = {"a": [chance.random(), -(2**60), "\u00e9\U0001f600", None, True, {"b": []}]}
    assert storable(value) == value, f"seed {seed}"
    assert storable({1: (float("-inf"), "\udc80\0")}) == {"1": [None, "?\ufffd"]}


# The connection


def test_the_time_is_the_databases_and_in_utc(database: Database) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    with database.transaction(read_only=True) as s:
        moment = now(s)
    assert moment.tzinfo is UTC
    assert before < moment < datetime.now(UTC) + timedelta(seconds=1)


def test_a_failed_transaction_changes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as s:
            projects.ensure(s, "p")
            raise Conflict("no")

    with pytest.raises(Conflict):
        fail()
    with database.transaction() as s:
        assert projects.page(s).rows == []


def test_writers_that_read_first_wait_for_each_other(sqlite_database: Database) -> None:
    with sqlite_database.transaction() as s:
        s.execute(text("CREATE TABLE counter (n INTEGER)"))
        s.execute(text("INSERT INTO counter VALUES (0)"))

    def count() -> None:
        for _ in range(10):
            with sqlite_database.transaction() as s:
                n = s.execute(text("SELECT n FROM counter")).scalar_one()
                s.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sqlite_database.transaction() as s:
        assert s.execute(text("SELECT n FROM counter")).scalar_one() == 80


def test_a_reader_does_not_wait_for_a_writer(sqlite_database: Database) -> None:
    with sqlite_database.transaction() as writer:
        projects.ensure(writer, "p")
        with sqlite_database.transaction(read_only=True) as reader:
            assert projects.page(reader).rows == []


def test_sqlite_is_set_to_lose_nothing(sqlite_database: Database) -> None:
    with sqlite_database.transaction() as s:
        settings = {
            name: s.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        version = s.execute(text("SELECT sqlite_version()")).scalar_one()
    fixed = keeps_wal_whole(tuple(map(int, version.split("."))))
    journal = "wal" if fixed else "delete"
    assert settings == {
        "journal_mode": journal,
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 15000,
    }


def test_without_a_fixed_sqlite_the_rollback_journal_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "sqlite_module", lambda: sqlite3)
    monkeypatch.setattr(session, "keeps_wal_whole", lambda version: False)
    with opened(f"sqlite:///{tmp_path / 'old.sqlite'}") as database, database.transaction() as s:
        assert s.execute(text("PRAGMA journal_mode")).scalar() == "delete"


@pytest.mark.parametrize(
    ("version", "whole"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 4), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_the_wal_reset_bug_is_known_by_version(version: tuple[int, ...], whole: bool) -> None:
    assert keeps_wal_whole(version) is whole


def test_postgresql_is_told_to_wait_only_so_long(postgres_database: Database) -> None:
    with postgres_database.transaction() as s:
        names = "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"
        values = [s.execute(text(f"SHOW {name}")).scalar() for name in names]
    assert values == ["5s", "30s", "1min"]


def test_a_read_only_transaction_of_postgresql_cannot_write(postgres_database: Database) -> None:
    with (
        pytest.raises(DBAPIError, match="read-only"),
        postgres_database.transaction(read_only=True) as s,
    ):
        projects.ensure(s, "p")
    with postgres_database.transaction() as s:
        projects.ensure(s, "p")


def test_the_plain_url_of_postgresql_is_understood(postgres_url: str) -> None:
    plain = postgres_url.replace("postgresql+psycopg", "postgresql")
    database = connect(plain)
    assert database.engine.driver == "psycopg"
    database.dispose()


def test_a_row_that_breaks_the_rules_of_a_job_is_refused(world: World) -> None:
    job = world.submit()
    for broken in (
        {"status": "running"},
        {"status": "succeeded"},
        {"status": "unknown"},
        {"desired": "unknown"},
        {"lease_owner": "w"},
    ):
        with pytest.raises(IntegrityError), world.database.transaction() as s:
            s.execute(update(Job).where(Job.id == job.id).values(**broken))
