"""A network as one graph of tensor operations, that others can run: a program of torch's, or ONNX."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Learner
from tasks.parts.columns import Columns, Ragged

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
Program = torch.export.ExportedProgram


class Example(NamedTuple):
    """A batch of two to trace a network with, and the axes of each of its tensors that may have any length."""

    inputs: tuple[Tensor, ...]
    free: tuple[tuple[int, ...], ...]


def example_of(columns: Columns) -> Example:
    """The first example of an encoded split, twice."""
    tensors: list[Tensor] = []
    free: list[tuple[int, ...]] = []
    for column in columns.inputs:
        values, *lengths = column.take(torch.tensor([0, 0]))
        if isinstance(column, Ragged) and values.shape[1] == 1:
            # A length of one would be taken for the only one.
            values = F.pad(values, (*(0, 0) * (values.ndim - 2), 0, 1))
        tensors += [values, *lengths]
        free += [(0, 1) if lengths else (0,), *((0,) for _ in lengths)]
    return Example(tuple(tensor.contiguous() for tensor in tensors), tuple(free))


class _Network(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.learner.predict(*inputs).float()


@contextmanager
def quiet() -> Iterator[None]:
    """Within, nobody is warned of what torch's exporters do among themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
@torch.no_grad()
def program_of(learner: Learner, example: Example) -> Program:
    """What a learner computes of its inputs. Raises what torch says of a network that is not one such graph."""
    network = _Network(learner).eval()
    free = (tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in example.free),)
    try:
        return torch.export.export(network, example.inputs, dynamic_shapes=free)
    except Exception as error:  # torch raises whatever its parts do
        # Reading the code takes longer than running it, but knows that `len` may differ.
        log.info("traced by its code, since running it said: %s", error)
        return torch.export.export(network, example.inputs, dynamic_shapes=free, strict=True)


@quiet()
def write_onnx(program: Program, path: Path) -> None:
    """Write a program as ONNX. Raises what torch says of operations that ONNX does not have."""
    try:
        found: Any = torch.onnx.export(program, verbose=False)
    except Exception as error:  # as above
        log.info("left as it was traced, since making it simpler said: %s", error)
        found = torch.onnx.export(program, verbose=False, optimize=False)
    found.save(path)


def forward_of_onnx(path: Path, threads: int) -> Forward:
    """An ONNX file as a function of the learner's inputs, computed by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    # Those that the network makes no use of are gone; each name ends in the input's place.
    places = {entry.name: int(entry.name.rpartition("_")[2]) for entry in session.get_inputs()}

    def forward(*inputs: Tensor) -> Tensor:
        given = {name: inputs[place].numpy() for name, place in places.items()}
        return torch.from_numpy(session.run(None, given)[0])

    return forward


@torch.no_grad()
def difference(forward: Forward, learner: Learner, batches: Sequence[Sequence[Tensor]]) -> float:
    """How far what a graph says of batches is from what the learner says: the most of them, beside 1 or the value."""
    farthest = 0.0
    for inputs in batches:
        wanted = learner.predict(*inputs).float()
        apart = (forward(*inputs) - wanted).abs() / wanted.abs().clamp(min=1)
        farthest = max(farthest, apart.max().item())
    return farthest
