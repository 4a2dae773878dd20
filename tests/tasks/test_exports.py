"""Graphs of networks: who has which, what is in the file, and that it answers as the network does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import pytest
import torch
from safetensors.numpy import load_file

import tasks.parts.exports as exports
from models.parts.published import Unusable
from tasks.catalog import Spec, family_of, tasks
from tasks.parts.exports import FORMATS, Leaving, check_format
from tasks.parts.hub_archives import unpack
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from tests import published
from tests.api.serving_world import untrained
from tests.packed import files_of
from tests.worker.test_every_pair import content
from tests.worker.trainings import course

WITH = sorted(name for name, task in tasks().items() if task.graph)
TRIED = [
    ("tabular-regression", "mlp"),
    ("image-classification", "cnn"),
    ("semantic-segmentation", "cnn"),
    ("series-forecast", "gru"),
    ("series-classification", "tcn"),
    ("text-classification", "bag-of-ngrams"),
    ("text-classification", "transformer"),
    ("text-classification", "pretrained"),
    ("text-pair-classification", "bag-of-embeddings"),
    ("video-classification", "cnn"),
]
"""The kinds of network and of inputs; every pair of task and architecture would take minutes."""


def leaving(task: str, architecture: str, folder: Path) -> tuple[Leaving, Trained]:
    begun = course(task, content(task), {"name": architecture}, {"epochs": 1})
    spec = Spec(task=begun.trained.task, training=begun.training, transfer=None)
    begun.trained.learner.eval()
    few = begun.validation.columns.select(torch.arange(4))
    model = files_of(spec, begun.trained, folder)
    found = lambda trained: published.find(trained.task.architecture)  # noqa: E731
    return Leaving(model, lambda _: few, found, folder, folder / "export.zip"), begun.trained


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize(("task", "architecture"), TRIED)
def test_a_graph_that_others_run_answers_as_the_network_does(
    task: str, architecture: str, format: Any, tmp_path: Path
) -> None:
    asked, trained = leaving(task, architecture, tmp_path)
    check_format(format, trained.task)
    told = FORMATS[format].write(asked)
    assert told["difference"] < 1e-4
    with ZipFile(asked.path) as archive:
        archive.extractall(tmp_path / "out")
    examples = load_file(tmp_path / "out" / "examples.safetensors")
    inputs = [torch.from_numpy(examples[f"inputs_{n}"]) for n in range(len(examples) - 1)]
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(examples["output"]), trained.learner.predict(*inputs))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_what_the_card_shows_runs_without_the_service(format: Any, tmp_path: Path) -> None:
    asked, _ = leaving("text-classification", "text-cnn", tmp_path)
    FORMATS[format].write(asked)
    with ZipFile(asked.path) as archive:
        archive.extractall(out := tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "- `inputs_0`: int64, (batch, length)" in card
    shown = card.partition("```python\n")[2].partition("```")[0]
    check = """
import numpy, sys
assert numpy.allclose(numpy.asarray(output), numpy.asarray(examples["output"]), atol=1e-5)
assert not {"tasks", "models"} & set(sys.modules)
"""
    run = [sys.executable, "-I", "-c", shown + check]
    done = subprocess.run(
        run, cwd=out, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", sorted(set(tasks()) - set(WITH)))
def test_a_task_without_graphs_says_so_and_what_there_is(name: str) -> None:
    task = untrained(name).spec.task
    for format in ("onnx", "pt2"):
        with pytest.raises(Invalid) as refused:
            check_format(format, task)
        problem = refused.value.problems[0]
        assert (problem.loc, problem.found, problem.allowed) == (
            ("format",), format, ["safetensors"],
        )  # fmt: skip
        assert name in problem.msg


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("tabular-classification", "random-forest"),
        ("text-classification", "lstm"),
        ("text-classification", "hierarchical-attention"),
        ("series-classification", "gru"),
    ],
)
def test_an_architecture_without_a_graph_for_the_task_says_so(task: str, architecture: str) -> None:
    kind = tasks()[task]
    asked = kind.model_validate({"name": task, "architecture": {"name": architecture}})
    assert isinstance(asked.architecture, family_of(kind))
    with pytest.raises(Invalid, match=architecture):
        check_format("pt2", asked)


def test_without_the_extra_onnx_is_refused_and_named(tmp_path: Path) -> None:
    task = untrained("image-classification").spec.task
    with (
        patch.object(exports, "find_spec", lambda _: None),
        pytest.raises(Invalid, match="its extra `onnx`"),
    ):
        check_format("onnx", task)


def test_a_graph_that_answers_otherwise_is_not_let_out(tmp_path: Path) -> None:
    asked, _ = leaving("tabular-regression", "mlp", tmp_path)
    read = exports.graphs.forward_of_onnx
    wrong = lambda *given: lambda *inputs: read(*given)(*inputs) + 1  # noqa: E731
    with (
        patch.object(exports.graphs, "forward_of_onnx", wrong),
        pytest.raises(Invalid, match="answers otherwise than the network, 1 apart"),
    ):
        FORMATS["onnx"].write(asked)
    assert not asked.path.exists()


def test_whoever_opens_a_graph_finds_the_labels(tmp_path: Path) -> None:
    asked, trained = leaving("image-classification", "cnn", tmp_path)
    FORMATS["pt2"].write(asked)
    with ZipFile(asked.path) as archive:
        codec = json.loads(archive.read("codec.json"))
    assert codec["labels"] == trained.codec.labels  # type: ignore[attr-defined]


OPENED = {
    "image-classification": {"pixel_values": torch.rand(2, 3, 16, 16)},
    "object-detection": {"pixel_values": torch.rand(2, 3, 16, 16)},
    "text-classification": {"input_ids": torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2]])},
    "token-classification": {"input_ids": torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2]])},
}
"""Tasks whose networks leave as a folder, with something that these networks can be shown."""


@pytest.mark.parametrize("task", OPENED)
def test_transformers_opens_a_folder_with_what_was_learned(task: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    asked, trained = leaving(task, "pretrained", tmp_path)
    check_format("huggingface", trained.task)
    with torch.no_grad():  # as if it had learned
        for weight in trained.learner.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    changed = files_of(asked.model.about.spec, trained, tmp_path)
    asked = asked._replace(model=changed._replace(about=asked.model.about))
    FORMATS["huggingface"].write(asked)
    with ZipFile(asked.path) as archive:
        archive.extractall(out := tmp_path / "out")
    network = AutoModel.from_pretrained(out).eval()
    own = trained.task.architecture.network_of(trained.learner)
    with torch.no_grad():
        found, wanted = (each(**OPENED[task]).last_hidden_state for each in (network, own))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert "AutoModel.from_pretrained" in (out / "README.md").read_text()
    head = load_file(out / "head.safetensors")
    assert head
    assert not any(name.startswith("backbone.network.") for name in head)


def test_a_folder_is_what_another_training_begins_with(tmp_path: Path) -> None:
    asked, _ = leaving("image-classification", "pretrained", tmp_path)
    FORMATS["huggingface"].write(asked)
    (kept := tmp_path / "kept").mkdir()
    found = unpack(asked.path, kept)
    assert found.model_type == "convnext"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(found.names)
    assert found.ignored == ["README.md"]


@pytest.mark.parametrize(
    ("task", "architecture", "said"),
    [
        ("image-classification", "cnn", "no network of transformers"),
        ("text-generation", "pretrained", "not put back"),
        ("text-to-text", "pretrained", "not put back"),
        ("speech-recognition", "pretrained", "not put back"),
    ],
)
def test_what_is_no_folder_says_so(task: str, architecture: str, said: str, tmp_path: Path) -> None:
    _, trained = leaving(task, architecture, tmp_path)
    with pytest.raises(Invalid, match=said):
        check_format("huggingface", trained.task)


def test_a_folder_that_would_begin_something_else_is_not_let_out(tmp_path: Path) -> None:
    asked, _ = leaving("image-classification", "pretrained", tmp_path)
    with (
        patch.object(exports.hub_folders, "save_weights", lambda *_: None),
        pytest.raises(Unusable, match=r"no file named model\.safetensors"),
    ):
        FORMATS["huggingface"].write(asked)
    assert not asked.path.exists()
