"""Artifacts of jobs: who may add them, how they are found, and when their bytes go."""

from typing import Any

import pytest

from store import artifacts, blobs, events, jobs, storage
from store.errors import Fenced, NotFound
from store.tables import Job, JobArtifact
from tests.store.world import World


def add(world: World, job: Job, name: str = "profile.json", content: bytes = b"{}") -> JobArtifact:
    blob = blobs.put_bytes(world.database, content)
    added: JobArtifact = world.holder(
        artifacts.add, job, name=name, media_type="application/json", blob_id=blob
    )
    return added


def names(world: World, job: Job, **options: Any) -> list[str]:
    return [row.name for row in world.act(artifacts.page, job.id, **options).rows]


def test_an_artifact_is_found_by_its_name_and_told_as_an_event(world: World) -> None:
    job = world.start()
    added = add(world, job)
    found = world.act(artifacts.get, job.id, "profile.json")
    assert (found.id, found.size, found.media_type) == (added.id, 2, "application/json")
    told = world.act(events.page, job.id).rows[-1]
    data = {"artifact": added.id, "name": "profile.json", "size_bytes": 2}
    assert (told.type, told.data) == ("artifact", data)
    assert world.act(events.happened, job.id, "artifact")
    assert not world.act(events.happened, job.id, "profile")
    assert not world.act(events.happened, world.submit().id, "artifact")


def test_one_of_the_same_name_gives_way(world: World) -> None:
    job = world.start()
    add(world, job, "other")
    add(world, job, content=b"before")
    newer = add(world, job, content=b"after!!")
    assert names(world, job) == ["profile.json", "other"]
    assert world.act(artifacts.get, job.id, "profile.json").id == newer.id


def test_artifacts_are_paged_and_belong_to_one_job(world: World) -> None:
    other, job = world.start(), world.start()
    for name in ("a", "b", "c"):
        add(world, job, name)
    page = world.act(artifacts.page, job.id, 2)
    assert ([row.name for row in page.rows], page.has_more) == (["c", "b"], True)
    assert names(world, job, after=page.next) == ["a"]
    assert names(world, other) == []
    with pytest.raises(NotFound, match="artifact"):
        world.act(artifacts.get, other.id, "a")


def test_only_the_holder_of_the_lease_may_add_one(world: World) -> None:
    job = world.start()
    world.holder(jobs.release, job, charge=False)
    with pytest.raises(Fenced):
        add(world, job)
    assert names(world, job) == []


def test_an_artifact_of_bytes_that_are_not_there_is_refused(world: World) -> None:
    job = world.start()
    with pytest.raises(NotFound, match="blob"):
        world.holder(artifacts.add, job, name="a", media_type="text/plain", blob_id="0" * 64)


def test_bytes_are_kept_and_counted_as_long_as_the_job(world: World) -> None:
    job = world.start()
    blob = add(world, job, content=b"a profile").blob_id
    assert world.act(blobs.sweep, 0) == 0
    assert world.act(storage.usage)["artifact_bytes"] == 9
    assert world.act(storage.usage, world.project)["blob_bytes"] == 9 + 7
    assert world.act(storage.usage, world.other_project)["artifact_bytes"] == 0
    world.save(job)
    world.holder(jobs.finish, job, "succeeded")
    world.user(jobs.delete, job)
    assert world.act(blobs.sweep, 0) == 9
    with pytest.raises(NotFound):
        world.act(blobs.size, blob)
