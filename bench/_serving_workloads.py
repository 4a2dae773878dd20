"""What the serving benchmark asks for: three networks, the data to train them on, and the requests."""

import base64
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bench._load import Request
from cli.client import Client

COLUMNS, CLASSES, REQUESTS = 16, 10, 32
TABLE, IMAGES = "tabular-classification", "image-classification"


class Workload(NamedTuple):
    """A network of one size, and inputs for it."""

    name: str
    task: dict[str, Any]
    examples: int
    epochs: int
    side: int = 0
    """Of the images in pixels, if there are any."""
    file: str = ""
    """The format they are sent in."""

    def train(self, client: Client, folder: Path) -> None:
        """Have the service train it as a model of the workload's name."""
        write = _write_images if self.side else _write_table
        data = {"file": write(self, folder)}
        dataset = client.upload(self.task["name"], self.name, data)
        asked: dict[str, Any] = {"epochs": self.epochs, "batch_size": 64}
        job = client.submit(dataset["id"], name=self.name, task=self.task, training=asked)
        client.wait(job["id"])

    def inputs(self) -> list[Any]:
        """What a client would send: rows, or images as files."""
        draw = np.random.default_rng(1)
        if not self.side:
            return [_row(draw, place % CLASSES) for place in range(REQUESTS)]
        return [_image(self, draw, place % CLASSES) for place in range(REQUESTS)]

    def request(self, value: Any, path: str, headers: Mapping[str, str]) -> Request:
        """An input as the service reads it: JSON, and images as they are."""
        if not self.side:
            return self.json_request(value, path, headers)
        return Request(path, {"Content-Type": f"image/{self.file}", **headers}, value)

    def json_request(self, value: Any, path: str, headers: Mapping[str, str]) -> Request:
        """An input as JSON; images are base64."""
        if self.side:
            value = {"image": base64.b64encode(value).decode()}
        body = json.dumps({"inputs": [value]}, separators=(",", ":")).encode()
        return Request(path, {"Content-Type": "application/json", **headers}, body)


def _task(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, **options}


_RESNET_18 = {"name": "resnet", "depths": [2, 2, 2, 2], "width": 64}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", _task(TABLE, architecture={"name": "mlp"}), 2_000, 2),
        Workload(
            "cnn", _task(IMAGES, architecture={"name": "cnn"}, image_size=32), 500, 2, 32, "png"
        ),
        Workload(
            "resnet", _task(IMAGES, architecture=_RESNET_18, image_size=64), 200, 1, 64, "jpeg"
        ),
    )
}


def _row(draw: np.random.Generator, label: int) -> dict[str, float]:
    """Numbers around a point of their own for each label."""
    middle = np.random.default_rng(label).normal(size=COLUMNS)
    values = middle + draw.normal(size=COLUMNS)
    return {f"x{place}": round(float(value), 4) for place, value in enumerate(values)}


def _write_table(workload: Workload, folder: Path) -> Path:
    draw, path = np.random.default_rng(0), folder / f"{workload.name}.jsonl"
    with path.open("w") as file:
        for number in range(workload.examples):
            label = number % CLASSES
            file.write(json.dumps({**_row(draw, label), "label": f"class {label}"}) + "\n")
    return path


def _image(workload: Workload, draw: np.random.Generator, label: int) -> bytes:
    """Large soft patches as in a photo, of another pattern for each label, and noise."""
    coarse = np.random.default_rng(label).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    size = workload.side, workload.side
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    noisy = smooth + draw.normal(0, 12, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, workload.file)
    return buffer.getvalue()


def _write_images(workload: Workload, folder: Path) -> Path:
    draw, path = np.random.default_rng(0), folder / f"{workload.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(workload.examples):
            label = number % CLASSES
            name = f"class {label}/{number}.{workload.file}"
            archive.writestr(name, _image(workload, draw, label))
    return path
