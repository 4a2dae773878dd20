"""Explanations: where in an image a model sees a label."""

import base64
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from models.parts.training import Training
from tasks import catalog
from tasks.base import Facts, Upload
from tasks.parts.images import encode_png
from tasks.trained import Trained
from tests.api.service import errors_of
from tests.api.serving_world import Example, World, client
from tests.conftest import opened

SIDE, SPOT = 32, 8
CORNERS = {"left": (0, 0), "right": (SIDE - SPOT, SIDE - SPOT)}
"""Where the bright spot of each label is."""


def spotted(label: str, seed: int) -> bytes:
    """Noise, with a bright spot in a corner that the label tells: a square for left, a cross for right."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 90, (1, SIDE, SIDE)).astype(np.uint8)
    top, left = CORNERS[label]
    spot = pixels[0, top : top + SPOT, left : left + SPOT]
    shape = np.ones((SPOT, SPOT), bool) if label == "left" else np.eye(SPOT, dtype=bool)
    spot[shape] = 255
    return encode_png(pixels)


def learned(folder: Path) -> Example:
    """A classifier that tells the spots."""
    file = folder / "spots.zip"
    with ZipFile(file, "w") as archive:
        for number in range(80):
            label = [*CORNERS][number % 2]
            archive.writestr(f"{label}/{number}.png", spotted(label, number))
    task = catalog.task_named("image-classification")(augmentation={})
    checked = task.check({"file": Upload(file, file.name)}, task.options_type())
    facts = Facts(checked.schema, {name: frame.height for name, frame in checked.splits.items()})
    training = Training(epochs=15, batch_size=16)
    spec = catalog.resolve("image-classification", facts, task, training, None)
    train = checked.splits["train"]
    torch.manual_seed(0)
    codec = spec.task.learn_codec(train.lazy(), checked.schema)
    columns, learner = codec.encode(train), spec.task.build(codec)
    learner.start(spec.training, None, 60)
    learner.enter_epoch(0)
    for step in range(60):
        learner.train_step(columns.batch(torch.randint(columns.examples, (16,))), step)
    learner.eval()
    return Example(spec, Trained(spec.task, codec, learner), facts)


@pytest.fixture(scope="module")
def asked(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("explain")
    url = f"sqlite:///{shutil.copy(_sqlite_template, folder / 'store.sqlite')}"
    with opened(url) as database:
        world = World(database)
        world.publish("spots", learned(folder))
        world.publish("rows")
        with client(world, folder) as found:
            yield found


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image)


def explain(asked: TestClient, image: bytes, **query: str) -> NDArray[np.uint8]:
    answer = asked.post(
        "/v1/models/spots/explain",
        content=image,
        params=query,
        headers={"Content-Type": "image/png", "Accept": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    return pixels(answer.content)


@pytest.mark.parametrize("label", CORNERS)
def test_a_map_is_brightest_where_the_label_is_seen(asked: TestClient, label: str) -> None:
    found = explain(asked, spotted(label, 1_000))
    assert found.shape == (SIDE, SIDE)
    brightest = np.unravel_index(found.argmax(), found.shape)
    near = [
        abs(int(place) - (corner + SPOT / 2))
        for place, corner in zip(brightest, CORNERS[label], strict=True)
    ]
    assert max(near) <= SPOT, f"{label}: brightest at {brightest}"
    assert (found.min(), found.max()) == (0, 255)


def test_what_is_explained_is_the_prediction(asked: TestClient) -> None:
    inputs = [{"image": base64.b64encode(spotted(label, 7)).decode()} for label in CORNERS]
    said = asked.post("/v1/models/spots/explain", json={"inputs": inputs}).json()
    predicted = asked.post("/v1/models/spots/predict", json={"inputs": inputs}).json()
    assert said["model"] == predicted["model"] == "spots@1"
    for one, prediction, label in zip(
        said["explanations"], predicted["predictions"], CORNERS, strict=True
    ):
        assert one["label"] == prediction["label"] == label
        assert one["score"] == pytest.approx(prediction["scores"][label], abs=1e-5)
        assert pixels(base64.b64decode(one["map"])).shape == (SIDE, SIDE)


def test_another_label_can_be_looked_for(asked: TestClient) -> None:
    image = spotted("left", 3)
    assert np.array_equal(explain(asked, image), explain(asked, image, label="left"))
    assert not np.array_equal(explain(asked, image), explain(asked, image, label="right"))


def test_what_cannot_be_explained_is_refused_in_words(asked: TestClient) -> None:
    image = {"image": base64.b64encode(spotted("left", 3)).decode()}
    body = {"inputs": [image], "parameters": {"label": "top"}}
    (error,) = errors_of(asked.post("/v1/models/spots/explain", json=body))
    assert (error["loc"], error["allowed"]) == (["parameters", "label"], ["left", "right"])
    body = {"inputs": [image], "parameters": {"top_k": 1}}
    (error,) = errors_of(asked.post("/v1/models/spots/explain", json=body))
    assert error["loc"] == ["parameters", "top_k"]
    two = asked.post(
        "/v1/models/spots/explain", json={"inputs": [image] * 2}, headers={"Accept": "image/png"}
    )
    assert errors_of(two)[0]["loc"] == ["inputs"]
    errors_of(asked.post("/v1/models/rows/explain", json={"inputs": [{"a": 1}]}), 404)
