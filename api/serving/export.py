"""A process that writes a model's network as ONNX: `python -m api.serving.export FOLDER`.

The folder holds `model.json` (task, codec and the path of the weights) and `inputs.safetensors`, a batch to trace
the network with. It gets `network.onnx`, and `int8.onnx`, whose matrix products have 8 bits, if that is asked for.
"""

import json
import os
import sys
from pathlib import Path
from threading import Thread

import torch
from safetensors.torch import load_file

from tasks import trained
from tasks.catalog import read_task
from tasks.parts.graphs import Example, program_of, write_onnx

NETWORK, INT8 = "network.onnx", "int8.onnx"


def export(folder: Path) -> None:
    """Write the files. Raises what torch says of a network that has no such form."""
    asked = json.loads((folder / "model.json").read_text())
    model = trained.load(read_task(asked["task"]), asked["codec"], Path(asked["weights"]))
    found = load_file(folder / "inputs.safetensors")
    inputs = tuple(found[str(place)] for place in range(len(found)))
    example = Example(inputs, tuple(map(tuple, asked["free"])))
    write_onnx(program_of(model.learner, example), folder / f".{NETWORK}")
    (folder / f".{NETWORK}").replace(folder / NETWORK)
    if asked["int8"]:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folder / NETWORK, folder / f".{INT8}")
        (folder / f".{INT8}").replace(folder / INT8)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    os.nice(19)
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()
    export(Path(sys.argv[1]))
