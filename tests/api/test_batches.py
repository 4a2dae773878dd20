"""Batch predictions over HTTP: what is taken, what is refused, and what other routes make of the job."""

from collections.abc import Callable
from io import BytesIO
from typing import Any
from uuid import uuid4
from zipfile import ZIP_DEFLATED, ZipFile

import polars as pl
import pytest
from fastapi.testclient import TestClient

from store import artifacts, jobs
from tasks.parts.inputs import Entry, entries
from tests.api.service import UPLOAD_BYTES, Service, Worker, errors_of

Send = Callable[..., Any]


@pytest.fixture
def send(client: TestClient, job: str, worker: Worker) -> Send:
    """Asks a model that is there for predictions."""
    worker.succeed(job)

    def send(content: bytes | str | None = None, name: str = "rows.csv", **more: Any) -> Any:
        files = None if content is None else {"file": (name, content)}
        headers = more.pop("headers", None)
        path = f"/v1/models/{more.pop('ref', job)}/batch-predict"
        return client.post(path, data=more, files=files, headers=headers)

    return send


def read(client: TestClient, job_id: str) -> list[Entry]:
    """The inputs that the worker will find."""
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/inputs.parquet")
    return list(entries(pl.read_parquet(BytesIO(answer.content))))


def test_a_data_set_is_predicted_for_by_a_job(send: Send, dataset: str, job: str) -> None:
    options = '{"priority": 7, "resources": {"queue": "gpu"}}'
    answer = send(dataset=dataset, split="train", options=options)
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{made['id']}"
    assert (made["kind"], made["status"], made["name"]) == (
        "predict",
        "queued",
        f"{job}@1 for rows",
    )
    assert (made["priority"], made["queue"], made["dataset"]) == (7, "gpu", dataset)
    assert made["request"] == {"model": f"{job}@1", "dataset": dataset, "split": "train"}
    assert made["base_checkpoint"]


def test_the_inputs_of_a_file_are_kept_with_their_faults(send: Send, client: TestClient) -> None:
    sent = b'{"a": 1, "b": 2}\n\n{"a": 1,\nnull\n{"a": "\xff"}\n'
    answer = send(sent, "rows.jsonl")
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert (made["dataset"], made["request"]["file"]) == (None, "rows.jsonl")
    good, broken, odd, bad = read(client, made["id"])
    assert (good.kind, good.line, good.input) == ("json", 1, b'{"a": 1, "b": 2}')
    assert (broken.line, broken.problems[0].msg) == (3, "not JSON")
    assert odd.input == b"null", "that no model reads it is for the model to say"
    assert (bad.line, bad.input) == (5, None)


def test_tables_are_read_row_by_row(send: Send, client: TestClient) -> None:
    sent = b'a;b\n1;2\n"3;4\n5";6\n7\n8;\xe4\n'
    one, two, three, four = read(client, send(sent).json()["id"])
    assert (one.kind, one.input) == ("row", b'{"a":"1","b":"2"}')
    assert (two.line, two.input) == (3, b'{"a":"3;4\\n5","b":"6"}')
    assert three.problems[0] == (("line", 5), "wrong number of cells", 1, 2)
    assert (four.problems[0].loc, four.problems[0].msg) == (("line", 6, "b"), "not UTF-8")
    parquet = BytesIO()
    pl.DataFrame({"a": [1.5, None], "b": ["x", "y"]}).write_parquet(parquet)
    found = read(client, send(parquet.getvalue(), "rows.parquet").json()["id"])
    assert [entry.input for entry in found] == [b'{"a":1.5,"b":"x"}', b'{"a":null,"b":"y"}']


def test_quotes_that_mean_nothing_in_a_tsv_are_left_as_they_are(
    send: Send, client: TestClient
) -> None:
    found = read(client, send(b'a\tb\n1\t5" long\n2\t"quoted\n', "rows.tsv").json()["id"])
    assert found[0].input == b'{"a":"1","b":"5\\" long"}'
    assert found[1].input == b'{"a":"2","b":"\\"quoted"}'


def bomb() -> bytes:
    packed = BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(30 << 20))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        (b"", "rows.csv", "the file is empty"),
        (b"a,b\n", "rows.csv", "the file has no inputs"),
        (b"a,a\n1,2\n", "rows.csv", "not a name of its own"),
        (b"PAR1 and nothing else", "rows.parquet", "not a sound Parquet file"),
        (bomb(), "images.zip", "not a table"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(
    send: Send, content: bytes, name: str, found: str
) -> None:
    (error,) = errors_of(send(content, name))
    assert error["loc"][0] == "file"
    assert error["msg"] == found


def test_a_zip_that_swells_beyond_belief_is_refused_where_zips_are_read(
    send: Send, service: Service, worker: Worker
) -> None:
    key = service.client(service.key("train"))
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        picture = pictured()
        for label in ("x", "y"):
            for number in range(4):
                archive.writestr(f"{label}/{number}.png", picture)
    data, files = {"task": "image-classification"}, {"file": ("images.zip", packed.getvalue())}
    dataset = key.post("/v1/datasets", data=data, files=files).json()["id"]
    job = key.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    worker.succeed(job)
    path = f"/v1/models/{job}/batch-predict"
    (error,) = errors_of(key.post(path, files={"file": ("images.zip", bomb())}))
    assert error["msg"] == "would swell beyond belief when unpacked"
    taken = key.post(path, files={"file": ("images.zip", packed.getvalue())}).json()
    found = read(key, taken["id"])
    assert [entry.name for entry in found][:2] == ["x/0.png", "x/1.png"]
    assert found[0].input == picture


def pictured() -> bytes:
    from PIL import Image

    picture = BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    return picture.getvalue()


def test_what_is_asked_for_must_be_one_thing_that_is_there(
    send: Send, dataset: str, client: TestClient
) -> None:
    for wrong in ({}, {"split": "test"}, {"content": "a,b\n1,2\n", "dataset": dataset}):
        (error,) = errors_of(send(**wrong))
        assert error["allowed"] == ["file", "dataset", "dataset + split"]
    (error,) = errors_of(send(dataset=dataset))
    assert (error["loc"], error["found"]) == (["split"], "test")
    (error,) = errors_of(send(dataset=dataset, split="train", options='{"devices": 2}'))
    assert error["loc"][:2] == ["options", "devices"]
    (error,) = errors_of(send(dataset=dataset, split="train", options="{"))
    assert error["loc"] == ["options"]
    assert errors_of(send(dataset="ds_unknown"), 404) == []
    assert errors_of(send("a,b\n1,2\n", ref="unknown"), 404) == []


def test_an_upload_may_be_as_large_as_one_of_a_data_set_and_no_larger(send: Send) -> None:
    row = "1,2\n"
    assert send("a,b\n" + row * (UPLOAD_BYTES // 5)).status_code == 202
    assert send("a,b\n" + row * (UPLOAD_BYTES // 4)).status_code == 413


def test_a_file_that_is_sent_again_with_its_key_is_not_read_again(
    service: Service, send: Send
) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first = send("a,b\n1,2\n", headers=headers)
    checker = service.app.state.checker
    memory = checker._bytes
    try:
        checker._bytes = 1  # nothing could be read
        again = send("a,b\n1,2\n", headers=headers)
        errors_of(send("a,b\n1,2\n"))
    finally:
        checker._bytes = memory
    assert (again.json(), again.headers["Location"]) == (first.json(), first.headers["Location"])
    assert again.headers["Idempotency-Replayed"] == "true"
    (error,) = errors_of(send("a,b\n1,3\n", headers=headers))
    assert error["loc"] == ["header", "Idempotency-Key"]


def test_a_retry_takes_the_same_inputs_and_other_wishes_are_refused(
    send: Send, client: TestClient, worker: Worker
) -> None:
    job = send("a,b\n1,2\n").json()["id"]
    taken = worker.take(job)
    worker.record(taken, progress={"rows_done": 0, "rows": 1, "percent": 0.0, "eta_seconds": None})
    shown = client.get(f"/v1/jobs/{job}").json()["progress"]
    assert (shown["rows_done"], shown["rows"], shown["percent"]) == (0, 1, 0.0)
    errors_of(client.post(f"/v1/jobs/{job}/stop"), 409)
    worker.finish(taken, "failed", error={"code": "internal", "message": "It failed."})
    again = client.post(f"/v1/jobs/{job}/retry").json()
    assert (again["kind"], again["parent"]) == ("predict", job)
    assert read(client, again["id"]) == read(client, job)
    for wish in ("clone", "extend"):
        body = {"epochs": 1} if wish == "extend" else {}
        answer = client.post(f"/v1/jobs/{job}/{wish}", json=body)
        errors_of(answer, 409)
        assert "is no training" in answer.json()["detail"]
    predicted = client.post(f"/v1/models/{job}/predict", json={"inputs": [{}]})
    errors_of(predicted, 409)
    assert "is no training" in predicted.json()["detail"]


def test_the_inputs_of_a_job_go_with_it(
    service: Service, send: Send, client: TestClient, worker: Worker
) -> None:
    job = send("a,b\n1,2\n").json()["id"]
    client.post(f"/v1/jobs/{job}/cancel")
    assert read(client, job)
    with service.database.transaction() as session:
        assert jobs.load(session, job).status == "cancelled"
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    with service.database.transaction() as session:
        assert artifacts.inputs(session, job) is None
