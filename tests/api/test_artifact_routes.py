"""Artifacts over HTTP, and asking for the profile that makes some."""

import hashlib
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import artifacts, blobs
from store.tables import JobArtifact
from tests.api.service import Service, Worker, errors_of

CONTENT = bytes(range(256)) * 10
NAME = "profile.trace.json.gz"


@pytest.fixture
def files(job: str, worker: Worker) -> list[JobArtifact]:
    """Two artifacts of a job that has ended."""
    held = worker.take(job)
    added = []
    for name, content, kind in ((NAME, CONTENT, "gzip"), ("profile.json", b"{}", "json")):
        blob = blobs.put_bytes(worker.database, content)
        with worker.database.transaction() as session:
            lease = held.lease_epoch
            media_type = f"application/{kind}"
            added.append(
                artifacts.add(session, job, lease, name=name, media_type=media_type, blob_id=blob)
            )
    worker.save(held)
    worker.finish(held)
    return added


def test_artifacts_are_listed_newest_first(
    client: TestClient, job: str, files: list[JobArtifact]
) -> None:
    path = f"/v1/jobs/{job}/artifacts"
    page = client.get(path, params={"limit": 1}).json()
    assert ([row["name"] for row in page["data"]], page["has_more"]) == (["profile.json"], True)
    (row,) = client.get(path, params={"after": page["next"]}).json()["data"]
    created_at = row.pop("created_at")
    assert created_at.endswith("Z")
    assert row == {
        "id": files[0].id,
        "name": NAME,
        "media_type": "application/gzip",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size_bytes": len(CONTENT),
    }


def test_a_job_without_artifacts_has_an_empty_list(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts")
    assert answer.json() == {"data": [], "has_more": False, "next": None}


def test_an_artifact_is_downloaded_whole_or_in_part(
    client: TestClient, job: str, files: list[JobArtifact]
) -> None:
    path = f"/v1/jobs/{job}/artifacts/{NAME}"
    whole = client.get(path)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["Content-Type"] == "application/gzip"
    assert NAME in whole.headers["Content-Disposition"]
    tag = whole.headers["ETag"]
    assert tag == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    part = client.get(path, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, CONTENT[100:200])
    assert client.get(path, headers={"Range": "bytes=9999-"}).status_code == 416
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    head = client.head(path)
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(CONTENT)))
    assert client.get(f"/v1/jobs/{job}/artifacts/profile.json").json() == {}


def test_what_is_unknown_or_another_projects_is_404(
    client: TestClient, service: Service, job: str, files: list[JobArtifact]
) -> None:
    stranger = service.client(service.key("train"))
    for path in (f"/v1/jobs/{job}/artifacts", f"/v1/jobs/{job}/artifacts/{NAME}"):
        assert client.get(path).status_code == 200
        errors_of(stranger.get(path), 404)
    for path in (f"/v1/jobs/{job}/artifacts/nothing", "/v1/jobs/job_nothing/artifacts"):
        errors_of(client.get(path), 404)


def test_a_deleted_job_has_no_artifacts(
    client: TestClient, job: str, files: list[JobArtifact]
) -> None:
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    errors_of(client.get(f"/v1/jobs/{job}/artifacts/{NAME}"), 404)


# Asking for a profile


def submit(client: TestClient, dataset: str, profile: Any) -> Any:
    return client.post("/v1/jobs", json={"dataset": dataset, "profile": profile})


DEFAULT = {"from_step": 10, "steps": 5, "memory": False, "shapes": False}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (None, None),
        ({}, DEFAULT),
        ({"from_step": 1, "steps": 20}, {**DEFAULT, "from_step": 1, "steps": 20}),
        ({"memory": True, "shapes": True}, {**DEFAULT, "memory": True, "shapes": True}),
    ],
)
def test_a_job_shows_which_steps_are_profiled(
    client: TestClient, dataset: str, worker: Worker, asked: Any, shown: Any
) -> None:
    answer = submit(client, dataset, asked)
    assert answer.status_code == 202
    job = answer.json()
    assert job["profile"] == shown
    assert "profile" not in job["resolved"]
    assert worker.take(job["id"]).profile == shown


@pytest.mark.parametrize(
    ("profile", "loc"),
    [
        ({"from_step": 0}, ["profile", "from_step"]),
        ({"from_step": 2**32}, ["profile", "from_step"]),
        ({"from_step": "soon"}, ["profile", "from_step"]),
        ({"from_step": 1.5}, ["profile", "from_step"]),
        ({"steps": 0}, ["profile", "steps"]),
        ({"steps": 21}, ["profile", "steps"]),
        ({"steps": None}, ["profile", "steps"]),
        ({"memory": "much"}, ["profile", "memory"]),
        ({"until": 3}, ["profile", "until"]),
        (True, ["profile"]),
        ([10, 5], ["profile"]),
    ],
)
def test_a_profile_that_cannot_be_is_refused(
    client: TestClient, dataset: str, profile: Any, loc: list[str]
) -> None:
    (error,) = errors_of(submit(client, dataset, profile))
    assert error["loc"] == loc


def test_jobs_made_from_a_job_are_profiled_as_it_was(
    client: TestClient, dataset: str, worker: Worker
) -> None:
    job = submit(client, dataset, {"from_step": 3}).json()["id"]
    shown = {**DEFAULT, "from_step": 3}
    path = f"/v1/jobs/{job}"
    assert client.post(f"{path}/clone").json()["profile"] == shown
    longer = client.post(f"{path}/clone", json={"profile": {"steps": 7}}).json()
    assert longer["profile"] == {**shown, "steps": 7}
    assert client.post(f"{path}/clone", json={"profile": None}).json()["profile"] is None
    worker.succeed(job)
    extended = client.post(f"{path}/extend", json={"epochs": 1}).json()
    assert extended["profile"] == shown
    client.post(f"/v1/jobs/{extended['id']}/cancel")
    assert client.post(f"/v1/jobs/{extended['id']}/retry").json()["profile"] == shown


def test_samples_are_those_of_the_newest_epoch_or_of_the_one_asked_for(
    client: TestClient, job: str, worker: Worker
) -> None:
    path = f"/v1/jobs/{job}/samples"
    assert client.get(path).status_code == 404
    held = worker.take(job)
    for epoch in (2, 10, 9):
        told = {"epoch": epoch, "step": 5 * epoch, "split": "validation", "samples": []}
        blob = blobs.put_bytes(worker.database, json.dumps(told).encode())
        with worker.database.transaction() as session:
            name = artifacts.samples_of(epoch)
            kind = "application/json"
            artifacts.add(session, job, held.lease_epoch, name=name, media_type=kind, blob_id=blob)
    assert client.get(path).json()["epoch"] == 10
    assert client.get(path, params={"epoch": 9}).json() == told
    assert client.get(path, params={"epoch": 3}).status_code == 404
    assert client.get(path, params={"epoch": 0}).status_code == 422
    assert client.get("/v1/jobs/job_nothing/samples").status_code == 404
