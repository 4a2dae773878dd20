"""Bodies of predictions that are no JSON: forms, and files as they are."""

import base64
import shutil
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import BaseModel, WithJsonSchema

from api.bodies import FORM, JSON, kind_of
from api.errors import UnsupportedMedia
from api.forms import MOST_PARTS, read_form
from tasks.parts.problems import Invalid
from tasks.parts.tabular import Row
from tests.api.serving_world import World, client, image_example, row, table_example
from tests.conftest import opened

REVIEWS = "text,label\n" + "\n".join(
    f"a {word} day {n},{label}"
    for label, word in (("good", "fine"), ("bad", "dull"))
    for n in "123456"
)


@pytest.fixture(scope="module")
def api(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("forms")
    with opened(f"sqlite:///{shutil.copy(_sqlite_template, folder / 'store.sqlite')}") as database:
        world = World(database)
        world.publish("rows")
        world.publish("pictures", image_example())
        world.publish("reviews", table_example("text-classification", REVIEWS))
        with client(world, folder) as asked:
            yield asked


def picture(colour: str, side: int = 12) -> bytes:
    packed = BytesIO()
    Image.new("RGB", (side, side), colour).save(packed, "BMP")
    return packed.getvalue()


def part(name: str, value: Any, file: str | None = None) -> tuple[str, tuple[Any, ...]]:
    return name, (file, value)


def send(api: TestClient, model: str, *parts: Any) -> Any:
    return api.post(f"/v1/models/{model}/predict", files=list(parts))


def by_json(api: TestClient, model: str, inputs: list[Any], **more: Any) -> Any:
    answer = api.post(f"/v1/models/{model}/predict", json={"inputs": inputs, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def encoded(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def test_several_files_are_several_inputs(api: TestClient) -> None:
    sent = [picture("red"), picture("blue"), picture("red", 20)]
    answer = send(api, "pictures", *(part("image", data, "a.bmp") for data in sent))
    assert answer.status_code == 200, answer.text
    assert answer.json() == by_json(api, "pictures", [encoded(data) for data in sent])


def test_a_file_may_be_base64_in_a_form_too(api: TestClient) -> None:
    sent = encoded(picture("red"))
    assert send(api, "pictures", part("image", sent["image"])).json() == by_json(
        api, "pictures", [sent]
    )


def test_texts_may_be_fields_or_files_and_parameters_json(api: TestClient) -> None:
    texts = ["ein schöner Tag", "a dull day"]
    answer = send(
        api,
        "reviews",
        part("text", texts[0]),
        part("text", texts[1].encode(), "review.txt"),
        part("parameters", '{"top_k": 1}'),
    )
    inputs = [{"text": text} for text in texts]
    assert answer.json() == by_json(api, "reviews", inputs, parameters={"top_k": 1})


def test_the_parts_of_a_row_are_its_columns(api: TestClient) -> None:
    rows = [row(1), row(2)]
    parts = [part(name, str(cell)) for given in rows for name, cell in given.items()]
    assert send(api, "rows", *parts).json() == by_json(api, "rows", rows)


def test_a_large_file_in_a_form_touches_no_disk(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = picture("red", 800)
    assert len(large) > 1_500_000
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    answer = send(api, "pictures", part("image", large, "large.bmp"))
    assert answer.json() == by_json(api, "pictures", [encoded(large)])


@pytest.mark.parametrize(
    ("model", "parts", "loc"),
    [
        ("pictures", [part("picture", b"", "a.png")], ["picture"]),
        ("pictures", [part("image", b"no", "a.png")], ["inputs", 0]),
        ("pictures", [part("parameters", "{}")], ["inputs"]),
        ("pictures", [part("image", picture("red"), "a.bmp")] * 1_001, ["inputs"]),
        ("reviews", [part("text", "a", None), part("label", "b")], ["label"]),
        ("reviews", [part("text", b"\xff\xfe", "a.txt")], ["text"]),
        ("reviews", [part("text", "a"), part("parameters", "top_k")], ["parameters"]),
        ("reviews", [part("text", "a"), *[part("parameters", "{}")] * 2], ["parameters"]),
        ("reviews", [part("text", "a"), part("parameters", "[]")], ["parameters"]),
        (
            "reviews",
            [part("text", "a"), part("parameters", '{"top_k": 0}')],
            ["parameters", "top_k"],
        ),
        ("rows", [part("a", "1"), part("a", "2"), part("b", "1")], ["body"]),
        ("rows", [part("a", "1"), part("a", "much")], ["inputs", 1, "a"]),
        ("rows", [part("c", "1")], ["inputs", 0, "c"]),
        ("rows", [part("kind", "x")] * (MOST_PARTS + 1), ["body"]),
    ],
)
def test_a_bad_part_is_named(api: TestClient, model: str, parts: list[Any], loc: list[Any]) -> None:
    answer = send(api, model, *parts)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == loc, answer.text


def test_an_unknown_part_is_told_what_there_is(api: TestClient) -> None:
    answer = send(api, "pictures", part("picture", b"", "a.png"))
    assert answer.json()["errors"][0]["allowed"] == ["image", "parameters"]


GOOD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", f"{FORM}; boundary=x"),
        (GOOD[:-6], f"{FORM}; boundary=x"),
        (GOOD, f"{FORM}; boundary=y"),
        (GOOD, FORM),
        (GOOD.replace(b' name="a"', b""), f"{FORM}; boundary=x"),
    ],
)
def test_what_is_no_form_is_refused(api: TestClient, body: bytes, content_type: str) -> None:
    assert read_form(GOOD, f"{FORM}; boundary=x", Row) == {"inputs": [{"a": "1"}]}
    headers = {"Content-Type": content_type}
    answer = api.post("/v1/models/rows/predict", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == ["body"]
    with pytest.raises(Invalid, match="not a form"):
        read_form(body, content_type, Row)


# Files as they are


def test_a_file_without_a_content_type_is_known_by_its_beginning(api: TestClient) -> None:
    [prediction] = by_json(api, "pictures", [encoded(picture("red"))])["predictions"]
    found = api.post("/v1/models/pictures/predict", content=picture("red"))
    assert found.json()["predictions"] == [prediction]
    assert api.post("/v1/models/rows/predict", content=b'{"inputs": [{}]}').status_code == 200


class Clip(BaseModel):
    """An input of a task that listens."""

    clip: Annotated[bytes, WithJsonSchema({"type": "string", "contentMediaType": "audio/*"})]


@pytest.mark.parametrize(
    ("said", "body", "kind"),
    [
        ("audio/wav", b"RIFF", "audio/*"),
        ("Audio/OGG; codecs=opus", b"OggS", "audio/*"),
        ("", b"RIFF", "audio/*"),
        ("", b' {"inputs": []}', JSON),
        ("application/json; charset=utf-8", b"RIFF", JSON),
        ("image/png", b"", None),
        ("multipart/form-data; boundary=x", b"", None),
    ],
)
def test_files_of_any_kind_may_be_a_body(said: str, body: bytes, kind: str | None) -> None:
    listening: Any = SimpleNamespace(name="listening", input_type=Clip)
    headers = [(b"content-type", said.encode())] if said else []
    request = Request({"type": "http", "headers": headers})
    if kind is None:
        with pytest.raises(UnsupportedMedia, match=r"application/json or audio/\*"):
            kind_of(request, body, listening)
    else:
        assert kind_of(request, body, listening) == kind
