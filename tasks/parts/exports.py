"""Exports: the formats in which a model leaves the service, and which of them it has."""

import re
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file

from models.parts.pretrained import Pretrained
from models.parts.published import Published
from tasks.base import Task
from tasks.parts import graphs, hub_folders, packages
from tasks.parts.columns import Columns
from tasks.parts.packages import ABOUT, CARD, CODEC, Packed
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

FormatName = Literal["safetensors", "onnx", "pt2", "huggingface"]
EXAMPLES = "examples.safetensors"
_COLOURS = re.compile(r"\x1b\[\d+m")
FEW = 4
"""Examples that a graph is tried on, and that go with it."""
NEAR = 1e-3
"""How far a graph may be from the network, beside 1 or the value itself."""


class Leaving(NamedTuple):
    """A model on its way out."""

    model: Packed
    examples: Callable[[Trained], Columns]
    """A few encoded examples for it. Raises Invalid when there are none."""
    published: Callable[[Trained], Published]
    """What it began with, without weights. Raises Unusable when that is not to be had any more."""
    folder: Path
    """For files in between."""
    path: Path
    """Where the file is to be."""


class Format(NamedTuple):
    """A way out."""

    file: str
    """What the name of such a file ends in."""
    summary: str
    lacks: Callable[[Task], str | None]
    """Why a model of this task does not have it, if so."""
    write: Callable[[Leaving], dict[str, Any]]
    """Makes the file; gives what is to be told of it. Raises Invalid for what turns out not to be possible."""


def check_format(name: FormatName, task: Task) -> None:
    """Raises Invalid for a format that models of this task do not have, listing those that they have."""
    reason = FORMATS[name].lacks(task)
    if reason is not None:
        has = [each for each, format in FORMATS.items() if format.lacks(task) is None]
        raise Invalid(Problem(("format",), reason, name, has))


def _pack(leaving: Leaving) -> dict[str, Any]:
    packages.pack(leaving.model, leaving.path)
    return {}


def _no_graph(task: Task) -> str | None:
    architecture = task.architecture
    if task.graph is None:
        return f"what answers for {task.name} is more than one graph of tensor operations"
    if architecture.graph is None:
        return f"{architecture.name} is no graph of tensor operations"
    if (task.graph, architecture.graph) == ("ragged", "fixed"):
        return f"a graph of {architecture.name} would be for inputs of one length alone"
    return None


def _no_onnx(task: Task) -> str | None:
    if reason := _no_graph(task):
        return reason
    if any(find_spec(package) is None for package in ("onnxruntime", "onnxscript")):
        return "the service is installed without its extra `onnx`"
    return None


def _write_onnx(leaving: Leaving) -> dict[str, Any]:
    return _write_graph(leaving, "network.onnx", _as_onnx)


def _write_pt2(leaving: Leaving) -> dict[str, Any]:
    return _write_graph(leaving, "network.pt2", _as_pt2)


def _as_onnx(program: graphs.Program, path: Path) -> graphs.Forward:
    graphs.write_onnx(program, path)
    return graphs.forward_of_onnx(path, torch.get_num_threads())


def _as_pt2(program: graphs.Program, path: Path) -> graphs.Forward:
    with graphs.quiet():
        torch.export.save(program, path)
        forward: graphs.Forward = torch.export.load(path).module()
    return forward


def _write_graph(
    leaving: Leaving, name: str, write: Callable[[graphs.Program, Path], graphs.Forward]
) -> dict[str, Any]:
    """A zip of a graph, once what was read again of its file answers as the network does."""
    about, codec, _ = leaving.model
    model = leaving.model.load()
    columns = leaving.examples(model)
    example = graphs.example_of(columns)
    file = leaving.folder / name
    try:
        forward = write(graphs.program_of(model.learner, example), file)
        batches = [columns.batch(index).inputs for index in _pieces(columns.examples)]
        apart = graphs.difference(forward, model.learner, batches)
    except Exception as error:  # torch and ONNX Runtime raise whatever their parts do
        said = _COLOURS.sub("", str(error)).strip().splitlines()
        problem = f"this network has no such form: {said[0][:500] if said else type(error)}"
        raise Invalid(Problem(("format",), problem)) from error
    if not apart <= NEAR:
        problem = f"what was written answers otherwise than the network, {apart:.2g} apart"
        raise Invalid(Problem(("format",), problem, None, f"at most {NEAR}"))
    _save_examples(model, batches[-1], leaving.folder / EXAMPLES)
    with zipfile.ZipFile(leaving.path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, name)
        archive.write(codec, CODEC)
        archive.write(leaving.folder / EXAMPLES, EXAMPLES)
        archive.writestr(ABOUT, about.model_dump_json(indent=1))
        archive.writestr(CARD, _card(about, name, example))
    return {"difference": apart}


def _no_folder(task: Task) -> str | None:
    architecture = task.architecture
    if not isinstance(architecture, Pretrained):
        return f"{architecture.name} is no network of transformers"
    if not architecture.returns:
        return f"the network of a model for {task.name} is not put back into the form it came in"
    return None


def _write_folder(leaving: Leaving) -> dict[str, Any]:
    """A zip of a folder, once a training could begin with it."""
    about, codec, _ = leaving.model
    model = leaving.model.load()
    folder = leaving.folder / "network"
    folder.mkdir()
    hub_folders.write(model, about, codec, leaving.published(model), folder)
    if not hub_folders.begins_alike(model, folder):
        problem = "what was written does not begin the same network again"
        raise Invalid(Problem(("format",), problem))
    with zipfile.ZipFile(leaving.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return {}


def _pieces(examples: int) -> list[torch.Tensor]:
    """One example, and all of them: batches of other sizes, and lengths, than what was traced."""
    return [torch.arange(1), torch.arange(examples)]


def _save_examples(model: Trained, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    with torch.no_grad():
        output = model.learner.predict(*inputs).float()
    named = {f"inputs_{place}": tensor.contiguous() for place, tensor in enumerate(inputs)}
    save_file({**named, "output": output.contiguous()}, path)


def _card(about: packages.About, name: str, example: graphs.Example) -> str:
    """What the file says to people who open it."""
    axes = ("batch", "length")
    inputs = "\n".join(
        f"- `inputs_{place}`: {str(tensor.dtype).removeprefix('torch.')}, "
        f"({', '.join(axes[axis] if axis in free else str(n) for axis, n in enumerate(tensor.shape))})"
        for place, (tensor, free) in enumerate(zip(*example, strict=True))
    )
    return f"""{packages.head(about)}
- `{name}`: the network, from encoded inputs to the outputs that a prediction is read from.
- `{CODEC}`: how inputs are encoded and outputs read: labels, vocabulary, statistics of columns.
- `{EXAMPLES}`: a few encoded inputs, and what the network says of them (`output`).

Its inputs, of which a graph leaves out those that it makes no use of:

{inputs}

```python
{_HOW[name]}
```
"""


_HOW = {
    "network.onnx": """import onnxruntime
from safetensors.numpy import load_file

network = onnxruntime.InferenceSession("network.onnx")
examples = load_file("examples.safetensors")
given = {each.name: examples[each.name] for each in network.get_inputs()}
(output,) = network.run(None, given)  # examples["output"]""",
    "network.pt2": """import torch
from safetensors.torch import load_file

network = torch.export.load("network.pt2").module()
examples = load_file("examples.safetensors")
given = [examples[f"inputs_{place}"] for place in range(len(examples) - 1)]
with torch.no_grad():
    output = network(*given)  # examples["output"]""",
}
_SHARED = "with `codec.json` and a few encoded examples"
FORMATS: Mapping[FormatName, Format] = {
    "safetensors": Format(
        ".zip",
        "a zip of `model.safetensors`, `codec.json` and `modelyard.json`, which `POST /v1/models` takes in again",
        lambda task: None,
        _pack,
    ),
    "onnx": Format(
        "-onnx.zip",
        f"the network as `network.onnx`, {_SHARED}",
        _no_onnx,
        _write_onnx,
    ),
    "pt2": Format(
        "-pt2.zip",
        f"the network as `network.pt2`, a program of `torch.export`, {_SHARED}",
        _no_graph,
        _write_pt2,
    ),
    "huggingface": Format(
        "-huggingface.zip",
        "a folder for `AutoModel.from_pretrained`, of what began with a published checkpoint; its head beside",
        _no_folder,
        _write_folder,
    ),
}
