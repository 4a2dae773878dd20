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


def test_parts_are_kept_in_order_until_they_are_dropped(world: World) -> None:
    job, other = world.start(kind="predict"), world.start(kind="predict")
    blobs_of = [blobs.put_bytes(world.database, bytes([n])) for n in range(3)]
    for n in (1, 0, 2):
        part = {"start": n * 10, "stop": n * 10 + 10, "blob_id": blobs_of[n]}
        world.holder(artifacts.add_part, job, **part)
    world.holder(artifacts.add_part, other, start=0, stop=5, blob_id=blobs_of[0])
    add(world, job, "part of something else")
    assert world.act(artifacts.parts, job.id) == list(zip((10, 20, 30), blobs_of, strict=True))
    assert world.act(blobs.sweep, 0) == 0
    world.act(artifacts.drop_parts, job.id)
    assert names(world, job) == ["part of something else"]
    assert len(world.act(artifacts.parts, other.id)) == 1


def test_a_part_pays_attempts_back_and_goes_when_the_job_is_cancelled(world: World) -> None:
    job = world.start(kind="predict")
    world.holder(jobs.release, job, charge=True)
    again = world.claim()
    assert again is not None
    assert again.attempt == 2
    job = again
    blob = blobs.put_bytes(world.database, b"part")
    world.holder(artifacts.add_part, job, start=0, stop=5, blob_id=blob)
    assert world.job(job).attempt == 1
    world.user(jobs.cancel, job)
    world.holder(jobs.finish, job, "cancelled")
    assert names(world, job) == []
    assert world.act(blobs.sweep, 0) > 0


def test_inputs_of_a_file_are_there_from_the_start_and_must_be_stored(world: World) -> None:
    blob = blobs.put_bytes(world.database, b"inputs")
    job = world.submit(kind="predict", dataset_id=None, inputs_blob=blob)
    assert world.act(artifacts.inputs, job.id) == blob
    assert (world.job(job).dataset_id, world.job(job).dataset_name) == (None, None)
    assert world.act(artifacts.inputs, world.submit().id) is None
    with pytest.raises(NotFound, match="blob"):
        world.submit(kind="predict", dataset_id=None, inputs_blob="0" * 64)
