"""Models in one file: whatever leaves comes in again and answers the same, and what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tasks.catalog import Spec, tasks
from tasks.parts.packages import ABOUT, CARD, CODEC, WEIGHTS, unpack
from tasks.parts.problems import Invalid
from tasks.trained import Trained, load
from tests.api.serving_world import train, untrained
from tests.packed import packed
from tests.worker.test_every_pair import content
from tests.worker.trainings import course
from worker.loop import fit

PAIRS = [
    *((name, None) for name in sorted(tasks())),
    ("tabular-classification", "random-forest"),
    ("image-classification", "pretrained"),
    ("text-classification", "pretrained"),
    ("text-to-text", "pretrained"),
    ("speech-recognition", "pretrained"),
]


def model_of(task: str, architecture: str | None) -> tuple[Spec, Trained]:
    if architecture is None:
        example = untrained(task)
        return example.spec, example.trained
    begun = course(task, content(task), {"name": architecture}, {"epochs": 1})
    if architecture == "random-forest":
        for _ in fit(*begun):
            pass
    return Spec(task=begun.trained.task, training=begun.training, transfer=None), begun.trained


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_a_model_that_left_comes_in_again_with_the_same_bits(
    task: str, architecture: str | None, tmp_path: Path
) -> None:
    spec, trained = model_of(task, architecture)
    found = unpack(packed(spec, trained, tmp_path), tmp_path)
    assert found.about.spec == spec
    assert (found.about.step, found.about.epoch) == (60, 3)
    codec = json.loads(found.codec.read_bytes())
    again = load(found.about.spec.task, codec, found.weights)
    assert again.codec == trained.codec
    own = trained.learner.state_dict()
    assert again.learner.state_dict().keys() == own.keys()
    for name, tensor in again.learner.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    blank = trained.codec.blank()
    if blank is not None:
        inputs = trained.codec.read_inputs([blank])
        if hasattr(inputs[0], "seed"):
            inputs = [each.model_copy(update={"seed": 0}) for each in inputs]
        assert again.predict(inputs) == trained.predict(inputs)


def test_others_read_the_weights_without_the_service(tmp_path: Path) -> None:
    example = train()
    with ZipFile(packed(example.spec, example.trained, tmp_path)) as archive:
        assert set(archive.namelist()) == {ABOUT, CODEC, WEIGHTS, CARD}
        card = archive.read(CARD).decode()
        archive.extract(WEIGHTS, tmp_path)
    assert "tabular-classification" in card
    assert "| validation | accuracy | 0.5 |" in card
    with safe_open(tmp_path / WEIGHTS, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in example.trained.learner.state_dict().items():
        assert (arrays[name] == tensor.numpy()).all()


Change = Callable[[dict[str, Any]], None]


def _set(place: str, value: Any) -> Change:
    *way, last = place.split(".")

    def change(files: dict[str, Any]) -> None:
        inner = files
        for step in way:
            inner = inner[step]
        inner[last] = value

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def changed(files: dict[str, Any]) -> None:
        change(files["weights"])

    return changed


BROKEN: dict[str, tuple[Change, str, str]] = {
    "no codec": (lambda files: files.pop("codec"), CODEC, "is missing"),
    "another format": (_set("about.version", 2), ABOUT, "Input should be 1"),
    "a field too many": (_set("about.more", 1), ABOUT, "Extra inputs are not permitted"),
    "no such task": (_set("about.spec.task.name", "magic"), ABOUT, "magic"),
    "a width of none": (
        _set("about.spec.task.architecture.width", 0),
        ABOUT,
        "greater than or equal to 1",
    ),
    "another width": (_set("about.spec.task.architecture.width", 9), WEIGHTS, "size mismatch"),
    "metrics of text": (_set("about.metrics", {"test": {"accuracy": "good"}}), ABOUT, "number"),
    "a codec of another task": (_set("codec", {"tokenizer": 1}), CODEC, "Field required"),
    "a codec with more labels": (
        _set("codec.labels", ["a", "b", "c", "d"]),
        WEIGHTS,
        "size mismatch",
    ),
    "a tensor less": (_weights(lambda w: w.pop("head.weight")), WEIGHTS, "head.weight"),
    "a tensor more": (_weights(lambda w: w.update(extra=torch.ones(1))), WEIGHTS, "extra"),
    "whole numbers": (
        _weights(lambda w: w.update({"head.bias": w["head.bias"].long()})),
        WEIGHTS,
        "numbers of another kind",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_together_is_refused_by_the_name_of_its_file(
    name: str, tmp_path: Path
) -> None:
    change, place, said = BROKEN[name]
    example = train()
    path = packed(example.spec, example.trained, tmp_path)
    with ZipFile(path) as archive:
        archive.extract(WEIGHTS, tmp_path)
        files = {
            "about": json.loads(archive.read(ABOUT)),
            "codec": json.loads(archive.read(CODEC)),
            "weights": load_file(tmp_path / WEIGHTS),
        }
    change(files)
    with ZipFile(path, "w") as archive:
        archive.writestr(ABOUT, json.dumps(files["about"]))
        if "codec" in files:
            archive.writestr(CODEC, json.dumps(files["codec"]))
        archive.writestr(WEIGHTS, save(files["weights"]))
    with pytest.raises(Invalid) as refused:
        unpack(path, tmp_path)
    problem = refused.value.problems[0]
    assert problem.loc[0] == place
    assert said in str(problem)


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    example = train()
    path = packed(example.spec, example.trained, tmp_path)
    with ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content[:-4] if name == WEIGHTS else content)
    with pytest.raises(Invalid, match="not a whole safetensors file"):
        unpack(path, tmp_path)


def test_a_forest_in_which_rows_would_go_in_circles_is_refused(tmp_path: Path) -> None:
    spec, trained = model_of("tabular-classification", "random-forest")
    branches = trained.learner.state_dict()["branches"]
    branches[-1] = 0
    with pytest.raises(Invalid, match="lead back"):
        unpack(packed(spec, trained, tmp_path), tmp_path)


def test_a_configuration_that_names_code_of_others_is_refused(tmp_path: Path) -> None:
    spec, trained = model_of("image-classification", "pretrained")
    config = {**spec.task.architecture.config, "auto_map": {"AutoModel": "ours.Model"}}
    architecture = spec.task.architecture.model_copy(update={"config": config})
    task = spec.task.model_copy(update={"architecture": architecture})
    hostile = spec.model_copy(update={"task": task})
    with pytest.raises(Invalid, match="auto_map"):
        unpack(packed(hostile, trained, tmp_path), tmp_path)
