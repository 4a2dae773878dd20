"""Forgetting: labels are added to a model of the others through the service over HTTP, in several ways.

`--data DIR` holds a folder `sign_language_digits` at any depth with train.zip and test.zip: a folder of images
for each label.
Without it, scikit-learn's digits are used. The last two labels by name come later.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench._image_folders import images, label, with_labels
from bench._service import service
from cli.client import Client
from cli.digits import digits, image_folder

LATER = 2
"""Labels that are added."""
TASK = "image-classification"
WAYS: Mapping[str, dict[str, Any]] = {
    "grown": {"head": "grown"},
    "grown, distillation": {"head": "grown", "distillation": {"share": 0.5}},
    "grown, replay 0.5": {"head": "grown", "replay": 0.5},
    "grown, replay 0.8": {"head": "grown", "replay": 0.8},
    "replay 0.5, distillation": {
        "head": "grown",
        "replay": 0.5,
        "distillation": {"share": 0.5},
    },
}
"""What is asked of `transfer`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with the digits, a folder per label")
    parser.add_argument(
        "--epochs", type=int, help="of each training; the service's own if left out"
    )
    parser.add_argument("--architecture", help="the service's own choice if left out")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    training = {"epochs": arguments.epochs} if arguments.epochs else {}
    task: dict[str, Any] = {"name": TASK}
    if arguments.architecture:
        task["architecture"] = {"name": arguments.architecture}
    rows = []
    with tempfile.TemporaryDirectory() as folder, service() as client:
        whole = _found(arguments.data) if arguments.data else _digits(Path(folder))
        labels = sorted({label(name) for name in images(whole["train"])})
        known, added = labels[:-LATER], labels[-LATER:]
        parts = {
            "all": client.upload(TASK, "all", whole),
            "known": _upload(client, "known", whole, known, Path(folder)),
            "added": _upload(client, "added", whole, added, Path(folder)),
        }
        full = _recalls(
            client, _job(client, parts["all"], task=task, training=training), parts["all"]
        )
        base = _job(client, parts["known"], name="known", task=task, training=training)
        print(f"{'way':30}{'new labels':>12}{'of full':>10}{'old before':>12}{'after':>9}")
        for way, transfer in WAYS.items():
            request = {"base": base["id"], "transfer": transfer, "training": training}
            job = _job(client, parts["added"], name="grown", **request)
            after = _recalls(client, job, parts["all"])
            old = job["result"]["forgetting"]["metrics"]["accuracy"]
            new = _mean(after, added)
            row = {
                "way": way,
                "new": new,
                "of_full": new / _mean(full, added),
                "old": old,
                "report": job["result"]["forgetting"],
            }
            rows.append(row)
            print(
                f"{way:30}{new:12.4f}{row['of_full']:10.4f}{old['before']:12.4f}{old['after']:9.4f}",
                flush=True,
            )
    return {"rows": rows, "full": full}


def _job(client: Client, dataset: Mapping[str, Any], **request: Any) -> dict[str, Any]:
    job: dict[str, Any] = client.wait(client.submit(dataset["id"], **request)["id"])
    if job["status"] != "succeeded":
        raise RuntimeError(job["error"])
    return job


def _recalls(
    client: Client, job: Mapping[str, Any], dataset: Mapping[str, Any]
) -> dict[str, float]:
    """How much of each label in the test split of all a model finds."""
    evaluation = client.evaluate(job["model"], dataset["id"])
    found = client.wait(evaluation["id"])["result"]["per_class"]
    return {label: figures["recall"] for label, figures in found.items()}


def _mean(recalls: Mapping[str, float], labels: list[str]) -> float:
    return sum(recalls[label] for label in labels) / len(labels)


def _upload(
    client: Client, name: str, whole: Mapping[str, Path], labels: list[str], folder: Path
) -> dict[str, Any]:
    """A data set of the images with some of the labels."""
    files = {
        split: with_labels(path, folder / f"{name}.{split}.zip", labels)
        for split, path in whole.items()
    }
    made: dict[str, Any] = client.upload(TASK, name, files)
    return made


def _found(data: Path) -> dict[str, Path]:
    folder = next(data.rglob("sign_language_digits"))
    return {split: folder / f"{split}.zip" for split in ("train", "test")}


def _digits(folder: Path) -> dict[str, Path]:
    train, test = digits()
    return {
        name: image_folder(folder / f"{name}.zip", part.images, map(str, part.digits))
        for name, part in (("train", train), ("test", test))
    }
