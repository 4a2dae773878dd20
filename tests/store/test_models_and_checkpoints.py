"""Checkpoints that are kept, and the names under which they are served."""

from typing import Any

import pytest

from store import checkpoints, datasets, events, jobs, models
from store.errors import Conflict, NotFound
from store.tables import Checkpoint, Job
from tests.store.world import World


def published(world: World, **options: Any) -> Job:
    """A training that made a model version."""
    job = world.start(**options)
    world.save(job)
    done: Job = world.holder(jobs.finish, job, "succeeded")
    return done


def kept(world: World, job: Job) -> list[tuple[int, bool, bool]]:
    rows: list[Checkpoint] = world.act(checkpoints.page, job.id)
    return [(row.step, row.is_best, row.is_last) for row in rows]


# Checkpoints


def test_the_best_and_the_last_checkpoint_are_kept(world: World) -> None:
    job = world.start()
    for step, is_best in [(1, True), (2, False), (3, True), (4, False), (5, False)]:
        world.save(job, step, is_best=is_best)
    assert kept(world, job) == [(5, False, True), (3, True, False)]
    assert world.act(checkpoints.best, job.id).step == 3
    assert world.act(checkpoints.last, job.id).step == 5


def test_a_job_shows_the_metrics_of_its_best_checkpoint(world: World) -> None:
    job = world.start()
    world.save(job, 1)
    world.save(job, 2, is_best=False)
    assert world.job(job).metrics == {"validation": {"accuracy": 0.1}}


def test_a_checkpoint_saved_twice_is_kept_once(world: World) -> None:
    job = world.start()
    for _ in range(2):
        world.save(job, 3)
    assert kept(world, job) == [(3, True, True)]


def test_a_checkpoint_that_an_unfinished_job_starts_from_is_kept(world: World) -> None:
    job = world.start()
    base = world.save(job, 1)
    child = world.submit(base_checkpoint_id=base.id, queue="gpu")
    world.save(job, 2)
    assert [step for step, _, _ in kept(world, job)] == [2, 1]
    world.user(jobs.cancel, child)
    world.save(job, 3)
    assert [step for step, _, _ in kept(world, job)] == [3]


def test_a_job_cannot_start_from_a_checkpoint_that_is_not_there(world: World) -> None:
    for option in ("base_checkpoint_id", "resume_checkpoint_id"):
        with pytest.raises(NotFound, match="checkpoint"):
            world.submit(**{option: "ckpt_unknown"})


def test_a_checkpoint_is_told_as_an_event(world: World) -> None:
    job = world.start()
    saved = world.save(job, 4)
    told = world.act(events.page, job.id).rows[-1]
    assert (told.type, told.data["checkpoint"], told.data["step"]) == ("checkpoint", saved.id, 4)


# Models


def test_every_reference_finds_its_checkpoint(world: World) -> None:
    first, second = published(world), published(world)
    one, two = (world.act(checkpoints.best, job.id).id for job in (first, second))
    world.act(models.set_alias, world.project, "reviews", "live", 1)
    expected = {
        "reviews": ("reviews@2", two),
        "reviews@1": ("reviews@1", one),
        "reviews@2": ("reviews@2", two),
        "reviews@live": ("reviews@1", one),
        first.id: (f"{first.id}@1", one),
        f"{first.id}@1": (f"{first.id}@1", one),
        two: (two, two),
    }
    for ref, (shown, checkpoint_id) in expected.items():
        found = world.act(models.resolve, world.project, ref)
        assert (found.ref, found.checkpoint.id) == (shown, checkpoint_id)


@pytest.mark.parametrize(
    "ref",
    [
        "unknown",
        "reviews@9",
        "reviews@0",
        "reviews@99999999999999999999999",
        "reviews@" + "9" * 5_000,
        "reviews@²",
        "reviews@unknown",
        "reviews@live@1",
        "job_unknown",
        "job_unknown@1",
        "ckpt_unknown",
        "",
        "@",
        "@1",
        "x' OR '1'='1",
    ],
)
def test_an_unknown_reference_is_not_found(world: World, ref: str) -> None:
    published(world)
    with pytest.raises(NotFound):
        world.act(models.resolve, world.project, ref)


def test_a_job_without_a_checkpoint_cannot_be_asked(world: World) -> None:
    with pytest.raises(NotFound, match="checkpoint of job"):
        world.act(models.resolve, world.project, world.submit().id)


def test_a_running_job_is_asked_by_its_best_checkpoint_so_far(world: World) -> None:
    job = world.start()
    best = world.save(job, 1)
    world.save(job, 2, is_best=False)
    assert world.act(models.resolve, world.project, job.id).checkpoint.id == best.id


def test_an_alias_moves_and_is_deleted(world: World) -> None:
    for _ in range(2):
        published(world)
    for version in (1, 2):
        world.act(models.set_alias, world.project, "reviews", "live", version)
        assert world.act(models.aliases, world.project, "reviews") == {"live": version}
    world.act(models.delete_alias, world.project, "reviews", "live")
    assert world.act(models.aliases, world.project, "reviews") == {}
    with pytest.raises(NotFound):
        world.act(models.delete_alias, world.project, "reviews", "live")


def test_an_alias_needs_a_version_and_cannot_look_like_one(world: World) -> None:
    published(world)
    with pytest.raises(NotFound):
        world.act(models.set_alias, world.project, "reviews", "live", 2)
    with pytest.raises(Conflict, match="cannot be a number"):
        world.act(models.set_alias, world.project, "reviews", "2", 1)


def test_a_version_that_an_alias_points_at_cannot_be_deleted(world: World) -> None:
    published(world)
    world.act(models.set_alias, world.project, "reviews", "live", 1)
    with pytest.raises(Conflict, match="'live' points at"):
        world.act(models.delete, world.project, "reviews@1")
    with pytest.raises(Conflict, match="is an alias"):
        world.act(models.delete, world.project, "reviews@live")


def test_a_deleted_version_is_never_given_again(world: World) -> None:
    jobs_done = [published(world) for _ in range(2)]
    world.act(models.delete, world.project, "reviews@2")
    assert jobs.shown_model(world.job(jobs_done[1])) is None
    assert jobs.shown_model(published(world)) == "reviews@3"
    numbers = [row.version for row in world.act(models.versions, world.project, "reviews")]
    assert numbers == [3, 1]


def test_a_deleted_model_is_gone_with_all_it_has(world: World) -> None:
    job = published(world)
    world.act(models.set_alias, world.project, "reviews", "live", 1)
    world.act(models.delete, world.project, "reviews")
    for ref in ("reviews", "reviews@1", "reviews@live"):
        with pytest.raises(NotFound):
            world.act(models.resolve, world.project, ref)
    assert jobs.shown_model(world.job(job)) is None
    assert world.act(models.resolve, world.project, job.id)


def test_models_are_paged_newest_first(world: World) -> None:
    for name in ("a", "b", "c"):
        published(world, model_name=name)
    first = world.act(models.page, world.project, 2)
    rest = world.act(models.page, world.project, 2, first.next)
    assert [row.name for row in (*first.rows, *rest.rows)] == ["c", "b", "a"]


def test_the_newest_version_of_each_model_is_listed(world: World) -> None:
    for name in ("a", "b", "a", "b"):
        published(world, model_name=name)
    world.act(models.delete, world.project, "b@2")
    found = world.act(models.newest, world.project, 5)
    assert [(name, row.version) for name, row in found] == [("b", 1), ("a", 2)]
    assert len(world.act(models.newest, world.project, 1)) == 1
    assert world.act(models.newest, world.other_project, 5) == []


# Projects stand apart


def test_another_project_finds_nothing(world: World) -> None:
    job = published(world)
    checkpoint = world.act(checkpoints.best, job.id)
    other = world.other_project
    for function, ref in [
        (jobs.get, job.id),
        (jobs.cancel, job.id),
        (jobs.stop, job.id),
        (jobs.pause, job.id),
        (jobs.resume, job.id),
        (jobs.update, job.id),
        (jobs.delete, job.id),
        (datasets.get, world.dataset),
        (datasets.hold, world.dataset),
        (datasets.delete, world.dataset),
        (checkpoints.get, checkpoint.id),
        (checkpoints.hold, checkpoint.id),
        (models.get, "reviews"),
        (models.versions, "reviews"),
        (models.aliases, "reviews"),
        (models.delete, "reviews"),
        (models.delete, "reviews@1"),
        (models.resolve, "reviews"),
        (models.resolve, job.id),
        (models.resolve, checkpoint.id),
    ]:
        with pytest.raises(NotFound):
            world.act(function, other, ref)
    with pytest.raises(NotFound):
        world.act(models.set_alias, other, "reviews", "live", 1)
    with pytest.raises(NotFound):
        world.act(models.delete_alias, other, "reviews", "live")
    for module in (jobs, datasets, models):
        assert world.act(module.page, other).rows == []
    assert world.job(job).status == "succeeded"


def test_a_job_cannot_use_another_projects_data_or_checkpoint(world: World) -> None:
    foreign = world.new_dataset(world.other_project)
    with pytest.raises(NotFound, match="dataset"):
        world.submit(dataset_id=foreign.id)
    mine = world.act(checkpoints.best, published(world).id)
    with pytest.raises(NotFound, match="checkpoint"):
        world.act(checkpoints.hold, world.other_project, mine.id)


def test_two_projects_may_use_the_same_name(world: World) -> None:
    published(world)
    mine = world.act(models.resolve, world.project, "reviews").checkpoint
    world.act(models.publish, world.other_project, "reviews", mine.job_id, mine.id)
    assert [row.name for row in world.act(models.page, world.project).rows] == ["reviews"]
