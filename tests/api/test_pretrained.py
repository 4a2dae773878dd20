"""Published checkpoints that are uploaded: what is kept of a zip, what is refused, and who may use it."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import pretrained
from tests.api.service import FOLDER, Service, errors_of, zipped
from tests.published import image_network

WEIGHTS = FOLDER["model.safetensors"]


def send(client: TestClient, files: dict[str, bytes], top: str = "", **more: Any) -> Any:
    return client.post("/v1/pretrained", files={"file": ("our.zip", zipped(files, top))}, **more)


def test_a_zipped_folder_is_kept_file_by_file(service: Service, client: TestClient) -> None:
    more = {
        "README.md": b"# ours",
        "pytorch_model.bin": b"\x80\x04",
        "1_Pooling/config.json": b"{}",
    }
    answer = send(client, {**FOLDER, **more}, "our-bert/")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/pretrained/{made['id']}"
    assert (made["name"], made["model_type"]) == ("our", "bert")
    assert made["ignored"] == ["README.md", "pytorch_model.bin"]
    assert made["size_bytes"] == sum(len(content) for content in FOLDER.values()) + 2
    with service.database.transaction() as session:
        assert set(pretrained.files(session, made["id"])) == {*FOLDER, "1_Pooling/config.json"}
    assert client.get(f"/v1/pretrained/{made['id']}").json() == {**made, "ignored": []}
    assert made["id"] in {each["id"] for each in client.get("/v1/pretrained").json()["data"]}


def test_one_that_is_deleted_is_gone(client: TestClient) -> None:
    made = send(client, FOLDER).json()
    assert client.delete(f"/v1/pretrained/{made['id']}").status_code == 204
    assert client.get(f"/v1/pretrained/{made['id']}").status_code == 404
    assert client.delete(f"/v1/pretrained/{made['id']}").status_code == 404


def test_it_is_its_own_projects_alone(service: Service, client: TestClient) -> None:
    made = send(client, FOLDER).json()
    stranger = service.client(service.key("train"))
    assert stranger.get(f"/v1/pretrained/{made['id']}").status_code == 404
    assert stranger.delete(f"/v1/pretrained/{made['id']}").status_code == 404
    assert stranger.get("/v1/pretrained").json()["data"] == []


def test_an_upload_repeated_with_its_key_makes_one(client: TestClient) -> None:
    content, key = zipped(FOLDER), {"Idempotency-Key": "the-same"}
    files = {"file": ("our.zip", content)}
    first, second = (client.post("/v1/pretrained", files=files, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"config.json": None}, ["file", "config.json"], "is missing"),
        ({"config.json": b"{"}, ["file", "config.json"], "not valid JSON"),
        ({"config.json": b"[]"}, ["file", "config.json", "model_type"], "no kind of network"),
        ({"config.json": b"{}"}, ["file", "config.json", "model_type"], "no kind of network"),
        ({"tokenizer.json": b"[" * 100_000}, ["file", "tokenizer.json"], "not valid JSON"),
        ({"model.safetensors": None, "model.bin": b"."}, ["file"], "no weights"),
        ({"model.safetensors": WEIGHTS[:-1]}, ["file", "model.safetensors"], "not a whole"),
        ({"model.safetensors": b"\x80\x04."}, ["file", "model.safetensors"], "not a whole"),
        ({"model.safetensors": b"\xff" * 20}, ["file", "model.safetensors"], "not a whole"),
        (
            {"model.safetensors": len(HEADER).to_bytes(8, "little") + HEADER + b"abcd"},
            ["file", "model.safetensors"],
            "not a whole",
        ),
        ({"../out.json": b"{}"}, ["file", "../out.json"], "unsafe name"),
    ],
)
def test_what_is_no_safe_checkpoint_is_refused_by_file(
    client: TestClient, changes: dict[str, bytes | None], place: list[str], message: str
) -> None:
    changed = {**FOLDER, **changes}
    files = {name: content for name, content in changed.items() if content is not None}
    before = client.get("/v1/pretrained").json()
    answer = send(client, files)
    assert answer.status_code == 422, answer.text
    (error,) = errors_of(answer)
    assert error["loc"] == place
    assert message in error["msg"]
    assert client.get("/v1/pretrained").json() == before


def begin(client: TestClient, images: str, **architecture: Any) -> Any:
    asked = {"name": "pretrained", **architecture}
    task = {"name": "image-classification", "architecture": asked}
    return client.post("/v1/jobs", json={"dataset": images, "task": task})


def test_a_job_begins_with_what_was_uploaded_whatever_the_request_says_of_it(
    client: TestClient, images: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    image_network(folder, widths=[8, 16])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    checkpoint = send(client, files).json()["id"]
    answer = begin(client, images, checkpoint=checkpoint, config={"model_type": "bert"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    resolved = job["resolved"]["task"]["architecture"]
    assert resolved["config"]["model_type"] == json.loads(files["config.json"])["model_type"]
    assert resolved["shown"] is not None
    assert job["resolved"]["transfer"]["backbone_learning_rate"] == 0.1
    kept = client.delete(f"/v1/pretrained/{checkpoint}")
    assert kept.status_code == 409, kept.text
    assert job["id"] in kept.json()["detail"]
    again = client.post(f"/v1/jobs/{job['id']}/clone", json={"priority": 1}).json()
    assert again["resolved"] == job["resolved"]
    for each in (job, again):
        client.post(f"/v1/jobs/{each['id']}/cancel")
    assert client.delete(f"/v1/pretrained/{checkpoint}").status_code == 204


PLACE = ["task", "architecture", "checkpoint"]


def test_what_cannot_be_begun_with_is_refused_before_there_is_a_job(
    client: TestClient, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    of_texts = send(client, FOLDER).json()["id"]
    cases = {
        of_texts: "of kind bert",
        "nobody/has-this": "cannot be reached",
        "no name": "no name of a checkpoint",
    }
    for checkpoint, message in cases.items():
        (error,) = errors_of(begin(client, images, checkpoint=checkpoint))
        assert error["loc"] == PLACE
        assert message in error["msg"], error
    errors_of(begin(client, images, checkpoint="pre_nobody"), 404)
    (error,) = errors_of(begin(client, images, checkpoint=of_texts, revision="main"))
    assert "no revisions" in error["msg"]
    assert client.get("/v1/jobs", params={"dataset": images}).json()["data"] == []


def test_a_service_may_allow_some_checkpoints_alone(
    service: Service, client: TestClient, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.shelf, "_allowed", ("google/*",))
    (error,) = errors_of(begin(client, images, checkpoint="nobody/has-this-either"))
    assert error["loc"] == PLACE
    assert "google/*" in error["msg"]
