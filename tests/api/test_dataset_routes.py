"""Data sets over HTTP: what is accepted is kept, what is not leaves nothing behind."""

import io
import json
import zipfile
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import func, select

from store.tables import Blob, Dataset
from tests.api.service import ROWS, TASK, UPLOAD_BYTES, Service, Worker, errors_of

Upload = Callable[..., Any]


def test_a_good_upload_is_split_described_and_kept(client: TestClient, upload: Upload) -> None:
    answer = upload(name="my rows")
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/datasets/{made['id']}"
    assert (made["name"], made["task"], made["status"]) == ("my rows", TASK, "ready")
    assert made["splits"] == {"train": 32, "validation": 8}
    assert made["schema"]["labels"] == ["even", "odd"]
    assert client.get(answer.headers["Location"]).json() == made


def test_the_files_name_is_the_default_name(upload: Upload) -> None:
    assert upload(file="what a name.csv").json()["name"] == "what a name"


def test_given_splits_stay_as_they_are(client: TestClient) -> None:
    files = {split: (f"{split}.csv", ROWS) for split in ("train", "validation", "test")}
    answer = client.post("/v1/datasets", data={"task": TASK}, files=files)
    assert answer.json()["splits"] == {"train": 40, "validation": 40, "test": 40}


def test_files_left_out_may_be_sent_empty_as_the_docs_page_does(upload: Upload) -> None:
    answer = upload(name="", train="", validation="", test="", options="")
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"] == "rows"


def test_options_change_how_an_upload_is_read(upload: Upload) -> None:
    options = {"split": {"fraction": 0.5, "seed": 3}}
    made = upload(options=json.dumps(options)).json()
    assert made["splits"] == {"train": 20, "validation": 20}
    assert made["options"] == options


def test_examples_come_in_pages(client: TestClient, dataset: str) -> None:
    path, seen, after = f"/v1/datasets/{dataset}/examples", [], None
    while True:
        page = client.get(path, params={"limit": 15, **({"after": after} if after else {})}).json()
        seen += page["data"]
        after = page["next"]
        if not page["has_more"]:
            break
    assert len(seen) == 32
    assert {tuple(row) for row in seen} == {("a", "b", "label")}
    assert after is None
    errors_of(client.get(path, params={"split": "test"}), 404)
    errors_of(client.get(path, params={"split": "other"}))


def test_images_are_shown_as_base64(client: TestClient) -> None:
    answer = client.post(
        "/v1/datasets",
        data={"task": "image-classification"},
        files={"file": ("shapes.zip", _folders())},
    )
    assert answer.status_code == 201, answer.text
    page = client.get(f"/v1/datasets/{answer.json()['id']}/examples").json()
    assert any(isinstance(value, str) and len(value) > 50 for value in page["data"][0].values())


def test_lists_show_the_newest_first_and_can_be_filtered(
    client: TestClient, upload: Upload
) -> None:
    ids = [upload().json()["id"] for _ in range(3)]
    first = client.get("/v1/datasets", params={"limit": 2}).json()
    assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"]
    rest = client.get("/v1/datasets", params={"limit": 2, "after": first["next"]}).json()
    assert [row["id"] for row in rest["data"]] == [ids[0]]
    assert not rest["has_more"]
    assert client.get("/v1/datasets", params={"task": "nothing"}).json()["data"] == []


def test_a_data_set_in_use_cannot_be_deleted(
    client: TestClient, dataset: str, job: str, worker: Worker
) -> None:
    errors_of(client.delete(f"/v1/datasets/{dataset}"), 409)
    worker.succeed(job)
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    errors_of(client.get(f"/v1/datasets/{dataset}"), 404)
    shown = client.get(f"/v1/jobs/{job}").json()
    assert (shown["dataset"], shown["dataset_name"]) == (None, "rows")


# What is refused


def test_an_unknown_task_lists_the_known_ones(upload: Upload, service: Service) -> None:
    (error,) = errors_of(upload(task="tabular-clasification"))
    assert error["loc"] == ["task"]
    assert TASK in error["allowed"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,label\n1,2,x\n1,2,3,4\n", ["line", 3]),
        ("", []),
        ("a,b,label\n", []),
        ("a,b,label\nä,2,x\n".encode("utf-16"), []),
        (b"a,b,label\n\xff\xfe,2,x\n\xe9,3,y\n", []),
        ("a,b,label\n" + "1,2,same\n" * 20, []),
        (b"\x00\x01\x02\x03" * 1000, []),
        (pl.DataFrame({"a": [1]}).write_json().encode(), []),
    ],
    ids=["ragged", "empty", "no rows", "utf-16", "latin-1", "one class", "binary", "json"],
)
def test_a_bad_table_is_refused_and_leaves_nothing(
    upload: Upload, service: Service, content: str | bytes, words: list[Any]
) -> None:
    before = _kept(service)
    errors = errors_of(upload(content))
    assert errors[0]["loc"][0] == "file", errors
    assert all(word in errors[0]["loc"] for word in words), errors
    assert _kept(service) == before


def test_a_label_missing_in_validation_names_the_row(client: TestClient, service: Service) -> None:
    before = _kept(service)
    files = {"train": ("t.csv", ROWS), "validation": ("v.csv", "a,b,label\n1,2,even\n3,4,\n")}
    errors = errors_of(client.post("/v1/datasets", data={"task": TASK}, files=files))
    assert errors[0]["loc"][0] == "validation", errors
    assert 3 in errors[0]["loc"], errors
    assert _kept(service) == before


@pytest.mark.parametrize(
    "name", ["unreadable image", "bomb", "slip", "absolute", "not a zip", "no folders"]
)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    upload: Upload, service: Service, name: str
) -> None:
    archives = {
        "unreadable image": _folders({"a/broken.png": b"\x89PNG not at all"}),
        "bomb": _archive({"a/x.png": bytes(50_000_000), "b/y.png": _png(0)}),
        "slip": _folders({"../../escaped.png": _png(1)}),
        "absolute": _folders({"/tmp/escaped.png": _png(1)}),
        "not a zip": b"PK\x03\x04 but nothing else",
        "no folders": _archive({"x.png": _png(0)}),
    }
    before = _kept(service)
    errors = errors_of(upload(archives[name], task="image-classification", file="images.zip"))
    assert errors[0]["loc"][0] == "file", errors
    assert errors[0]["msg"]
    assert _kept(service) == before
    assert not list(service.data_dir.parent.rglob("escaped.png"))


def test_an_upload_over_the_bound_is_refused(upload: Upload, service: Service) -> None:
    before = _kept(service)
    assert errors_of(upload("a,b,label\n" + "x" * UPLOAD_BYTES), 413) == []
    assert _kept(service) == before


@pytest.mark.parametrize("sent", [[], ["validation"], ["file", "train"], ["file", "test"]])
def test_a_wrong_combination_of_files_lists_the_right_ones(
    client: TestClient, sent: list[str]
) -> None:
    files = {split: (f"{split}.csv", ROWS) for split in sent}
    body = {"data": {"task": TASK}, **({"files": files} if files else {})}
    (error,) = errors_of(client.post("/v1/datasets", **body))
    assert error["loc"] == ["file"]
    assert "train + validation" in error["allowed"]


@pytest.mark.parametrize(
    ("options", "loc"),
    [
        ("{", ["options"]),
        ("[" * 100_000, ["options"]),
        ("[]", ["options"]),
        ('{"spilt": {}}', ["options", "spilt"]),
        ('{"split": {"fraction": 2}}', ["options", "split", "fraction"]),
        ('{"split": {"by": "nothing"}}', ["options", "split", "by"]),
    ],
)
def test_bad_options_name_the_field(upload: Upload, options: str, loc: list[str]) -> None:
    assert errors_of(upload(options=options))[0]["loc"] == loc


def test_a_check_out_of_time_or_memory_is_the_datas_fault(service: Service, upload: Upload) -> None:
    checker = service.app.state.checker
    before = _kept(service)
    seconds, memory = checker._seconds, checker._bytes
    try:
        checker._bytes = 1
        (error,) = errors_of(upload())
        assert "memory" in error["msg"]
        checker._bytes, checker._seconds = memory, 0
        (error,) = errors_of(upload())
        assert "longer" in error["msg"]
    finally:
        checker._seconds, checker._bytes = seconds, memory
    assert _kept(service) == before


def test_a_check_without_room_is_put_off(
    service: Service, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.checker, "_hall", BoundedSemaphore(1))
    before = _kept(service)
    with service.app.state.checker._hall:
        answer = upload()
    assert errors_of(answer, 503) == []
    assert int(answer.headers["Retry-After"]) > 0
    assert _kept(service) == before


def _kept(service: Service) -> tuple[int, int, int]:
    """Data sets, blobs, and files that are being uploaded."""
    with service.database.transaction(read_only=True) as session:
        rows = [
            session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (Dataset, Blob)
        ]
    return (*rows, len(list((service.data_dir / "uploads").glob("*/*"))))


def _png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def _folders(more: dict[str, bytes] | None = None) -> bytes:
    images = {f"{kind}/{i}.png": _png(i * 20 + len(kind)) for kind in ("a", "bb") for i in range(6)}
    return _archive({**images, **(more or {})})


def _archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
