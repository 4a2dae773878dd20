"""Events, logs and weights of a job over HTTP."""

import hashlib
import json
import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.service import Worker, errors_of

STREAM = {"Accept": "text/event-stream"}


def events_of(text: str) -> list[dict[str, str]]:
    """The events of a stream, each as its fields."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_events_come_in_pages_without_gaps(client: TestClient, job: str, worker: Worker) -> None:
    worker.succeed(job)
    path = f"/v1/jobs/{job}/events"
    page = client.get(path).json()
    assert [event["seq"] for event in page["data"]] == list(range(1, len(page["data"]) + 1))
    assert page["data"][0]["data"] == {"status": "queued"}
    first = client.get(path, params={"limit": 1}).json()
    assert first["has_more"]
    rest = client.get(path, params={"after": first["next"]}).json()
    assert first["data"] + rest["data"] == page["data"]


def test_a_stream_follows_the_job_to_its_end(client: TestClient, job: str, worker: Worker) -> None:
    def run() -> None:
        time.sleep(0.7)
        worker.succeed(job)

    thread = threading.Thread(target=run)
    thread.start()
    answer = client.get(f"/v1/jobs/{job}/events", headers=STREAM)
    thread.join()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [event.get("id") for event in events] == ["1", "2", "3", "4", None]
    assert [event["event"] for event in events] == [
        "status",
        "status",
        "checkpoint",
        "status",
        "end",
    ]
    assert json.loads(events[3]["data"])["status"] == "succeeded"


def test_a_stream_is_taken_up_after_the_last_event(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    path = f"/v1/jobs/{job}/events"
    for headers, ids in [
        ({"Last-Event-ID": "1"}, ["2", None]),
        ({"Last-Event-ID": "99"}, [None]),
        ({"Last-Event-ID": "no number"}, ["1", "2", None]),
        ({"Last-Event-ID": "9" * 40}, [None]),
        ({}, ["1", "2", None]),
    ]:
        text = client.get(path, headers=STREAM | headers).text
        assert [event.get("id") for event in events_of(text)] == ids


def test_logs_come_as_json_and_as_text(client: TestClient, job: str, worker: Worker) -> None:
    held = worker.take(job)
    lines = [("info", f"epoch {n}") for n in range(1, 700)]
    worker.record(held, lines=[*lines, ("error", "the end")])
    path = f"/v1/jobs/{job}/logs"
    page = client.get(path, params={"limit": 2, "after": 1}).json()
    assert [(line["seq"], line["line"]) for line in page["data"]] == [
        (2, "epoch 2"),
        (3, "epoch 3"),
    ]
    text = client.get(path, headers={"Accept": "text/plain"}).text.splitlines()
    assert len(text) == 700
    assert text[0].endswith("info epoch 1")
    assert text[-1].endswith("error the end")


@pytest.fixture
def weights(client: TestClient, job: str, worker: Worker) -> tuple[str, bytes]:
    """The path of a checkpoint's weights, and what they are."""
    content = bytes(range(256)) * 8192  # two chunks
    checkpoint = worker.save(worker.take(job), weights=content)
    (listed,) = client.get(f"/v1/jobs/{job}/checkpoints").json()["data"]
    assert listed["id"] == checkpoint.id
    assert listed["size_bytes"] == len(content)
    assert listed["sha256"] == hashlib.sha256(content).hexdigest()
    assert (listed["is_best"], listed["is_last"]) == (True, True)
    return f"/v1/jobs/{job}/checkpoints/{checkpoint.id}/weights", content


def test_weights_are_downloaded_whole_and_in_parts(
    client: TestClient, weights: tuple[str, bytes]
) -> None:
    path, content = weights
    whole = client.get(path)
    assert whole.content == content
    assert whole.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    part = client.get(path, headers={"Range": "bytes=1048570-1048580"})
    assert part.status_code == 206
    assert part.content == content[1048570:1048581]
    tail = client.get(path, headers={"Range": "bytes=-5"})
    assert tail.content == content[-5:]
    errors_of(client.get(path, headers={"Range": f"bytes={len(content)}-"}), 416)


def test_weights_one_has_are_not_sent_again(client: TestClient, weights: tuple[str, bytes]) -> None:
    path, content = weights
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(content))
    same = client.get(path, headers={"If-None-Match": head.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_a_checkpoint_belongs_to_its_job(
    client: TestClient, dataset: str, weights: tuple[str, bytes]
) -> None:
    other: dict[str, Any] = client.post("/v1/jobs", json={"dataset": dataset}).json()
    path = weights[0].split("/")
    path[3] = other["id"]
    errors_of(client.get("/".join(path)), 404)
